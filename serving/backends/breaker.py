"""A circuit breaker on consecutive failures, pure but for its own counters.

After `THRESHOLD` failures in a row the replica gets no calls for a pause that doubles with each further
failure, up to `MAX_PAUSE_S`; when the pause is over one call may probe it, and a success closes the breaker.
Calls that were in flight together when a connection broke fail together, and count once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

THRESHOLD = 3
FIRST_PAUSE_S = 0.25
MAX_PAUSE_S = 5.0


@dataclass(slots=True)
class Breaker:
    """The breaker of one replica, or of a version there. Times are monotonic, and given by the caller."""

    failures: int = 0
    failed_at: float = -math.inf
    probe_at: float = 0.0
    probing: bool = False

    def allows(self, now: float) -> bool:
        """Whether the replica may get a call: it is healthy, or its pause is over and no call probes it."""
        return self.failures < THRESHOLD or (now >= self.probe_at and not self.probing)

    def open(self, now: float) -> bool:
        """Whether the breaker keeps calls from the replica at `now`."""
        return self.failures >= THRESHOLD and now < self.probe_at

    def start(self) -> None:
        """A call is about to be made."""
        self.probing = self.failures >= THRESHOLD

    def succeed(self) -> None:
        """A call was answered, be it with an error that is the caller's."""
        self.failures = 0
        self.probing = False

    def fail(self, now: float, started: float) -> None:
        """A call that began at `started` failed in a way that is the replica's fault."""
        self.probing = False
        if started < self.failed_at:
            return
        self.failures += 1
        self.failed_at = now
        if self.failures >= THRESHOLD:
            pause_s = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2 ** min(self.failures - THRESHOLD, 10))
            self.probe_at = now + pause_s

    def trip(self) -> None:
        """A call got no answer at all: the `fail` that follows is to open the breaker by itself."""
        if self.failures < THRESHOLD:
            self.failures, self.failed_at = THRESHOLD - 1, -math.inf

    def abandon(self) -> None:
        """The caller went away before the call ended: nothing was learned."""
        self.probing = False

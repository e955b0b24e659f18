"""When to leave a failing replica alone: a consecutive-failure breaker, pure but for its own counters.

After `THRESHOLD` failures in a row the replica is left alone for a pause that doubles with each further
failure, up to `MAX_PAUSE_S`; when the pause is over one call may try it, and a success closes the breaker.
"""

from __future__ import annotations

from dataclasses import dataclass

THRESHOLD = 3
FIRST_PAUSE_S = 0.25
MAX_PAUSE_S = 5.0


@dataclass(slots=True)
class Breaker:
    """The breaker of one replica. Times are on the monotonic clock and given by the caller."""

    failures: int = 0
    closed_at: float = 0.0
    probing: bool = False

    def allows(self, now: float) -> bool:
        """Whether the replica may get a call: it is healthy, or its pause is over and nobody tries it yet."""
        return self.failures < THRESHOLD or (now >= self.closed_at and not self.probing)

    def open(self, now: float) -> bool:
        """Whether the replica is left alone at `now`."""
        return self.failures >= THRESHOLD and now < self.closed_at

    def start(self) -> None:
        """A call is about to be made."""
        self.probing = self.failures >= THRESHOLD

    def succeed(self) -> None:
        """A call was answered, if only with an error that is the caller's."""
        self.failures = 0
        self.probing = False

    def fail(self, now: float) -> None:
        """A call failed in a way that is the replica's fault."""
        self.failures += 1
        self.probing = False
        if self.failures >= THRESHOLD:
            pause_s = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2 ** min(self.failures - THRESHOLD, 10))
            self.closed_at = now + pause_s

    def trip(self) -> None:
        """A call got no answer at all: its failure, which is told next, is enough."""
        self.failures = max(self.failures, THRESHOLD - 1)

    def abandon(self) -> None:
        """The caller went away before the call ended: nothing was learned."""
        self.probing = False

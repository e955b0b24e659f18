"""Whether a request is let in: who asks, whether there is room, and whether the caller keeps to its limits.

A refusal must stay cheap while the house is full, so nothing here waits, and nothing is read or decoded
before a request is admitted.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from serving.callers import Callers
from serving.concurrency import ConcurrencyLimit
from serving.errors import DeadlineExceeded, Overloaded, RateLimited, SluiceError
from serving.keys import Caller, Scope
from serving.telemetry import Metrics

# Long enough for a queue of requests to empty, short enough that capacity is not left idle.
RETRY_AFTER_S = 1.0


class Ticket:
    """The room that one admitted request takes: itself, and the bytes of its body as they come in."""

    def __init__(self, admission: Admission, caller: Caller) -> None:
        self._admission = admission
        self.caller = caller
        self.held_bytes = 0

    def hold(self, size_bytes: int) -> None:
        """Take room for `size_bytes` more of the body; raises Overloaded if there is none."""
        self._admission.take_bytes(size_bytes)
        self.held_bytes += size_bytes


class Admission:
    """The room of one gateway.

    Args:
        max_in_flight: requests admitted at once.
        max_in_flight_bytes: bytes of bodies held at once.
        metrics: where refusals and requests in flight are counted.
        callers: who may come in; None: anyone.
        limit: how many requests may be in progress, with their bodies read; None: `max_in_flight`.
        clock: the monotonic clock, in seconds.
    """

    def __init__(
        self,
        *,
        max_in_flight: int,
        max_in_flight_bytes: int,
        metrics: Metrics,
        callers: Callers | None = None,
        limit: ConcurrencyLimit | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_in_flight = max_in_flight
        self._max_in_flight_bytes = max_in_flight_bytes
        self._metrics = metrics
        self._bytes = 0
        self._limiter: SlidingWindowCounterRateLimiter | None = None
        self._in_flight_of: Counter[str] = Counter()
        self.callers = callers or Callers()
        self.in_flight = 0
        self.limit = limit or ConcurrencyLimit(math.inf, floor=lambda: 1, ceiling=max_in_flight)
        self._clock = clock

    @property
    def limits(self) -> tuple[int, int]:
        """Requests in flight, and bytes of bodies held, at most."""
        return self._max_in_flight, self._max_in_flight_bytes

    @property
    def held_bytes(self) -> int:
        """Bytes of bodies that are held."""
        return self._bytes

    @contextmanager
    def admit(self, credential: str | None = None, scope: Scope = "classify") -> Iterator[Ticket]:
        """Room for one request while the block runs.

        Raises:
            Unauthenticated, PermissionDenied: the credential does not allow this.
            RateLimited: the caller has too many requests, in a window or in flight.
            Overloaded: too many requests are in flight.
        """
        caller = self._authorize(credential, scope)
        self._check_room()
        self._check_limits(caller)
        ticket = Ticket(self, caller)
        self.in_flight += 1
        self._in_flight_of[caller.name] += 1
        self._metrics.in_flight.inc()
        try:
            yield ticket
        finally:
            self.in_flight -= 1
            self._in_flight_of[caller.name] -= 1
            if not self._in_flight_of[caller.name]:
                del self._in_flight_of[caller.name]
            self._metrics.in_flight.dec()
            self._bytes -= ticket.held_bytes

    @contextmanager
    def progress(self) -> Iterator[None]:
        """Room for the work on one request, whose body has been read, while the block runs.

        Raises:
            Overloaded: requests take too long already.
        """
        self._check_progress()
        started = self._clock()
        self.limit.in_progress += 1
        try:
            yield
            now = self._clock()
            self.limit.observe(now - started, now)
        except DeadlineExceeded:
            now = self._clock()
            self.limit.observe(now - started, now)
            raise
        finally:
            self.limit.in_progress -= 1

    def _check_progress(self) -> None:
        if self.limit.full:
            raise self._refused(
                "progress",
                Overloaded(
                    f"{self.limit.in_progress} requests are in progress, as many as get done in time",
                    stage="admission",
                    retry_after_s=RETRY_AFTER_S,
                ),
            )

    def take_bytes(self, size_bytes: int) -> None:
        """Take room for bytes of a body; the ticket of the request gives it back."""
        if self._bytes + size_bytes > self._max_in_flight_bytes:
            raise self._refused(
                "bytes",
                Overloaded(
                    f"{self._bytes} bytes of requests are held and the limit is {self._max_in_flight_bytes}",
                    stage="admission",
                    retry_after_s=RETRY_AFTER_S,
                ),
            )
        self._bytes += size_bytes

    def _authorize(self, credential: str | None, scope: Scope) -> Caller:
        try:
            return self.callers.authorize(credential, scope)
        except SluiceError as error:
            raise self._refused("credentials", error) from error.__cause__

    def _check_room(self) -> None:
        if self.in_flight >= self._max_in_flight:
            raise self._refused(
                "requests",
                Overloaded(
                    f"{self.in_flight} requests are in flight, which is the limit",
                    stage="admission",
                    retry_after_s=RETRY_AFTER_S,
                ),
            )
        self._check_progress()  # now, before the body is read; and again when its work begins

    def _check_limits(self, caller: Caller) -> None:
        most = caller.max_concurrent
        if most is not None and self._in_flight_of[caller.name] >= most:
            raise self._refused(
                "concurrency",
                RateLimited(
                    f"{caller.name} has {most} requests in flight, which is its limit",
                    stage="admission",
                    retry_after_s=RETRY_AFTER_S,
                ),
            )
        if caller.rate is None:
            return
        if self._limiter is None:  # its storage runs a thread: only who has rates pays
            self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        if not self._limiter.hit(caller.rate, caller.name):
            reset = self._limiter.get_window_stats(caller.rate, caller.name).reset_time
            raise self._refused(
                "rate",
                RateLimited(
                    f"{caller.name} is over its rate of {caller.rate}",
                    stage="admission",
                    retry_after_s=max(reset - time.time(), 0.1),
                ),
            )

    def _refused(self, reason: str, error: SluiceError) -> SluiceError:
        self._metrics.refused.labels(reason).inc()
        return error

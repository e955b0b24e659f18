"""Admission control: who asks, whether there is room, and whether the caller keeps to its limits.

A refusal must stay cheap under overload, so nothing here waits, and nothing is read or decoded before a
request is admitted. A caller that floods the gateway fills it only for itself: part of the room is reserved
for those who hold less than an equal share. A model that is overloaded does not crowd out the others
(`serving.concurrency`).
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from limits import RateLimitItem

from serving.access.callers import Callers
from serving.access.keys import Caller, Scope
from serving.access.rates import SlidingWindow
from serving.access.shares import Shares
from serving.concurrency import ConcurrencyLimit, Progress, Work
from serving.errors import Overloaded, RateLimited, SluiceError, TooLarge
from serving.telemetry.metrics import Metrics

# Long enough for a queue of requests to drain, short enough that capacity is not left idle.
RETRY_AFTER_S = 1.0
# An eighth of the hard limits is reserved for callers who hold less than an equal share: enough for a few
# requests of each of several, and little enough that a caller who is alone does not miss it.
_RESERVE = 8


class Ticket:
    """The room that one admitted request takes: itself, and the bytes of its body as they come in.

    A context manager, which gives the room back at its end.

    Attributes:
        caller: whose request it is.
        of_whom: whose share it counts towards.
        held_bytes: how much of its body is held.
    """

    __slots__ = ("_admission", "caller", "held_bytes", "of_whom")

    def __init__(self, admission: Admission, caller: Caller, of_whom: str) -> None:
        self._admission = admission
        self.caller = caller
        self.of_whom = of_whom
        self.held_bytes = 0

    def hold(self, size_bytes: int) -> None:
        """Take room for `size_bytes` more of the body.

        Raises:
            TooLarge: there is never that much for one request.
            Overloaded: there is not enough at the moment.
        """
        self._admission.take_bytes(self, size_bytes)
        self.held_bytes += size_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._admission.leave(self)


class Admission:
    """The room of one gateway.

    Args:
        max_in_flight: requests admitted at once.
        max_in_flight_bytes: bytes of bodies held at once.
        metrics: where refusals and requests in flight are counted.
        callers: who may come in; None: anyone.
        limit: makes the limit on how many requests for a model may be in progress, with their bodies read;
            None: `max_in_flight`.
        models: how many models are served.
        clock: the monotonic clock, in seconds.
    """

    def __init__(
        self,
        *,
        max_in_flight: int,
        max_in_flight_bytes: int,
        metrics: Metrics,
        callers: Callers | None = None,
        limit: Callable[[], ConcurrencyLimit] | None = None,
        models: Callable[[], int] = lambda: 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_in_flight = max_in_flight
        self._max_in_flight_bytes = max_in_flight_bytes
        self._metrics = metrics
        self._admitted, self._bytes = Shares(), Shares()
        self._windows: dict[str, tuple[RateLimitItem, SlidingWindow]] = {}
        self.callers = callers or Callers()
        self._models = models
        no_target = functools.partial(ConcurrencyLimit, math.inf, floor=lambda: 1, ceiling=max_in_flight)
        self._progress = Progress(limit or no_target, max_in_flight, clock)
        self._clock = clock

    @property
    def limits(self) -> tuple[int, int]:
        """Requests in flight, and bytes of bodies held, at most."""
        return self._max_in_flight, self._max_in_flight_bytes

    def _kept_of(self, most: int) -> int:
        """How much of a hard limit is reserved for those who hold less than an equal share.

        Those who share are the callers; or, if callers are not told apart, the models, one of which may hang
        and must not take all the room. With a single model, nothing is reserved.
        """
        return 0 if self.callers.open and self._models() < 2 else most // _RESERVE

    @property
    def in_flight(self) -> int:
        """Requests that are admitted and not answered."""
        return self._admitted.total

    @property
    def in_progress(self) -> int:
        """Requests whose body was read and which are not answered."""
        return self._progress.total

    def progress_of(self, model: str) -> tuple[int, int]:
        """How many of those are for this model, and how many there may be at the moment."""
        return self._progress.of(model), self._progress.limit_of(model)

    @property
    def held_bytes(self) -> int:
        """Bytes of bodies that are held."""
        return self._bytes.total

    def admit(
        self, credential: str | None = None, scope: Scope = "classify", model: str | None = None
    ) -> Ticket:
        """Room for one request, to be given back by the ticket.

        Args:
            credential: the caller's, as it was sent.
            scope: what the credential must allow.
            model: which model is asked for; None: one that does not exist, or is not known yet.

        Raises:
            Unauthenticated, PermissionDenied: the credential does not allow this.
            RateLimited: the caller has too many requests, in a window or in flight.
            Overloaded: too many requests are in flight.
        """
        caller = self.authorize(credential, scope)
        of_whom = (model or "") if self.callers.open else caller.name
        self._check_room(of_whom)
        if model is not None:  # now, before the body is read; and again when its work begins
            self._check_progress(caller.name, model)
        self._check_limits(caller)
        self._admitted.take(of_whom)
        self._metrics.in_flight.inc()
        return Ticket(self, caller, of_whom)

    def authorize(self, credential: str | None, scope: Scope) -> Caller:
        """The caller that this credential identifies; raises like `admit` if it lacks `scope`."""
        try:
            return self.callers.authorize(credential, scope)
        except SluiceError as error:
            raise self._refused("credentials", error) from error.__cause__

    def leave(self, ticket: Ticket) -> None:
        """Take back the room of a request that has ended."""
        self._admitted.give_back(ticket.of_whom)
        self._metrics.in_flight.dec()
        if ticket.held_bytes:
            self._bytes.give_back(ticket.of_whom, ticket.held_bytes)

    def progress(self, caller: str, model: str) -> Work:
        """Room, while its block runs, for the work on a caller's request for a model, whose body was read.

        Entering it raises Overloaded if requests for this model already take too long.
        """
        return self._progress.work(model, caller, functools.partial(self._check_progress, caller, model))

    def _check_progress(self, caller: str, model: str) -> None:
        if not self._progress.fits(model, caller):
            raise self._refused(
                "progress",
                Overloaded(
                    f'{self._progress.of(model)} requests for model "{model}" are in progress, '
                    "as many as finish in time",
                    stage="admission",
                    retry_after_s=RETRY_AFTER_S,
                ),
            )

    def take_bytes(self, ticket: Ticket, size_bytes: int) -> None:
        """Take room for bytes of a request's body; its ticket gives it back. Raises as `Ticket.hold` does."""
        kept = self._kept_of(self._max_in_flight_bytes)
        most = self._max_in_flight_bytes - kept
        if ticket.held_bytes + size_bytes > most:  # inviting a retry would mean retrying for ever
            raise TooLarge(
                f"the request has over {most:,} bytes, which is the most that this gateway holds at once",
                stage="admission",
            )
        if not self._bytes.fits(ticket.of_whom, size_bytes, most, kept):
            raise self._refused(
                "bytes",
                Overloaded(
                    f"{self.held_bytes} bytes of requests are held and the limit is "
                    f"{self._max_in_flight_bytes}",
                    stage="admission",
                    retry_after_s=RETRY_AFTER_S,
                ),
            )
        self._bytes.take(ticket.of_whom, size_bytes)

    def _check_room(self, of_whom: str) -> None:
        kept = self._kept_of(self._max_in_flight)
        if not self._admitted.fits(of_whom, 1, self._max_in_flight - kept, kept):
            raise self._refused(
                "requests",
                Overloaded(
                    f"{self.in_flight} requests are in flight and the limit is {self._max_in_flight}",
                    stage="admission",
                    retry_after_s=RETRY_AFTER_S,
                ),
            )

    def _check_limits(self, caller: Caller) -> None:
        most = caller.max_concurrent
        if most is not None and self._admitted.held(caller.name) >= most:
            raise self._refused(
                "concurrency",
                RateLimited(
                    f"{caller.name} has {most} requests in flight, which is its limit",
                    stage="admission",
                    retry_after_s=RETRY_AFTER_S,
                ),
            )
        wait_s = 0.0 if caller.rate is None else self._window(caller.name, caller.rate).take(self._clock())
        if wait_s > 0.0:
            raise self._refused(
                "rate",
                RateLimited(
                    f"{caller.name} is over its rate of {caller.rate}",
                    stage="admission",
                    retry_after_s=max(wait_s, 0.1),
                ),
            )

    def _window(self, caller: str, rate: RateLimitItem) -> SlidingWindow:
        """What a caller has asked for lately; starts afresh if its rate was changed."""
        found = self._windows.get(caller)
        if found is None or found[0] != rate:
            found = self._windows[caller] = rate, SlidingWindow(rate.amount, rate.get_expiry())
        return found[1]

    def _refused(self, reason: str, error: SluiceError) -> SluiceError:
        self._metrics.refused.labels(reason).inc()
        return error

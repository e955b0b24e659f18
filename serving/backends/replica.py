"""What the gateway knows about one replica: what it serves, how busy and how healthy it is."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import NamedTuple, TypeVar

from serving import errors
from serving.backends.breaker import Breaker
from serving.backends.outliers import Outcomes, Version
from serving.backends.room import Room
from serving.backends.tfserving import TensorFlowServing, VersionStatus, is_full

Answer = TypeVar("Answer")

Call = Callable[[TensorFlowServing, float], Awaitable[Answer]]
"""Something to do with a replica: gets its API and the seconds that are left."""

# Weight of the newest call in the moving average of latency: about the last twenty calls count.
_LATENCY_WEIGHT = 0.1

# A replica that has answered nothing for this many times its usual latency is taken to hang.
_FAR_LONGER = 4.0

# A replica that comes (back) gets its full share of calls after this long: it may have to warm up.
RAMP_S = 3.0
_LEAST_WEIGHT = 0.1

# A call that ran out of less time than the first says more of its caller's haste than of the replica, unless
# such calls fare better on other replicas; of less than the second, it says nothing at all.
FAIR_TIME_S = 1.0
HASTY_TIME_S = 0.1
# The caller's timer and the call's own both end at the deadline, in either order: this close to it, an end is
# the deadline's.
_TIMER_SLACK_S = 0.01

# A timer that fires this much too late says that this process was stalled (its CPU quota was used up, say),
# and nothing of the replica, whose answer may be here unread.
LATE_S = 0.1

# Once a call is overdue, this is how often to look for another replica.
LOOK_AGAIN_S = 1.0


class Patience(NamedTuple):
    """How long a call is waited for, in seconds, and whether another replica could then answer it."""

    for_s: float
    others: Callable[[], bool]


class Replica:
    """One replica, with its counters.

    Attributes:
        breaker: for calls that it did not answer, whatever their version.
        breakers: model and version -> for calls that it failed, until the version answers again.
        versions: model -> version -> status, as of the last time the replica was asked.
        reachable: whether it answered the last time it was asked.
        reachable_since: when it became reachable.
        in_flight: calls that have not ended.
        booked_of: model and version -> batches that it computes, or that are on their way to it.
        room: how many calls it takes at once, batches and others alike.
        latency_s: moving average of successful calls' duration; 0 before the first.
        answered_at: when it last answered a call, if only with an error that is the caller's.
    """

    def __init__(self, api: TensorFlowServing) -> None:
        self.api = api
        self.address = api.address
        self.breaker = Breaker()
        self.breakers: dict[Version, Breaker] = {}
        self.outcomes = Outcomes()
        self.versions: dict[str, dict[int, VersionStatus]] = {}
        self.reachable = False
        self.reachable_since = -math.inf
        self.in_flight = 0
        self.booked_of: Counter[tuple[str, int]] = Counter()
        self.room = Room()
        self.latency_s = 0.0
        self.answered_at = -math.inf
        self._limits: dict[asyncio.Timeout, None] = {}  # of calls in flight, the oldest first

    def has(self, model: str, version: int) -> bool:
        """Whether `version` of `model` is AVAILABLE here."""
        status = self.versions.get(model, {}).get(version)
        return status is not None and status.state == "AVAILABLE"

    def usable(self, model: str, version: int, now: float) -> bool:
        """Whether a call for `version` of `model` may be sent here at `now`."""
        return (
            self.reachable
            and self.outcomes.ejected_until <= now
            and self.has(model, version)
            and self.breaker.allows(now)
        )

    def does_well(self, model: str, version: int, now: float) -> bool:
        """Whether it does not fail calls for this version, or may be tried again."""
        failing = self.breakers.get((model, version))
        return failing is None or failing.allows(now)

    @property
    def booked(self) -> int:
        """Batches that it computes, or that are on their way to it, of all versions."""
        return self.booked_of.total()

    def has_batch_of(self, model: str) -> bool:
        """Whether a batch for any version of a model is among them."""
        return any(name == model for name, _ in self.booked_of)

    def left_alone(self, now: float) -> bool:
        """Whether a breaker or an ejection keeps calls from it at `now`, for one version at least."""
        breakers = (self.breaker, *self.breakers.values())
        return self.outcomes.ejected_until > now or any(each.open(now) for each in breakers)

    def weight(self, now: float) -> float:
        """Its share of calls relative to a warm replica: it grows up to 1 from when it came (back)."""
        ready_for_s = now - max(self.reachable_since, self.outcomes.ejected_until)
        return min(1.0, max(_LEAST_WEIGHT, ready_for_s / RAMP_S))

    def load(self, now: float) -> tuple[float, float]:
        """What a choice compares: calls in flight, this one included, over its weight; then latency."""
        return (self.in_flight + 1) / self.weight(now), self.latency_s

    def book(self, model: str, version: int) -> None:
        """One more batch for a version is on its way to it."""
        self.booked_of[model, version] += 1

    def give_back(self, model: str, version: int) -> None:
        """A booked batch has ended, or goes elsewhere."""
        self.booked_of[model, version] -= 1
        if not self.booked_of[model, version]:
            del self.booked_of[model, version]

    def forget(self, model: str, version: int) -> None:
        """The replica said that it does not have this version: do not send more until it says otherwise."""
        self.versions.get(model, {}).pop(version, None)

    def came(self, now: float) -> None:
        """It answered when asked which versions it has."""
        if not self.reachable:
            self.reachable = True
            self.reachable_since = now

    def went(self) -> None:
        """It did not answer when asked which versions it has."""
        self.reachable = False
        self.versions.clear()
        self.breakers.clear()

    def give_up(self) -> None:
        """End every call in flight as if its patience had run out; other replicas can answer them."""
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(0.0)

    def hangs(self, of: Version, since: float, other: Replica, now: float) -> bool:
        """Whether it seems to hang in a call for a version, sent at `since`, compared with another replica.

        That is: since then, for many times the latency of either replica, it has answered nothing, while the
        other one has answered calls for that version. A replica that is busy with a single heavy call looks
        the same; at worst that call is made twice.
        """
        far_longer_s = _FAR_LONGER * max(self.latency_s, other.latency_s)
        return (
            self.answered_at < since < other.answered_at
            and now - since > far_longer_s
            and other.outcomes.tally(of, now).answered > 0
        )

    def overtaken(self, model: str, version: int, started: float, now: float) -> None:
        """It has had a call since `started`, and a replica that joined later has answered it meanwhile."""
        self.breaker.trip()
        self._failed(self.breaker, (model, version), started, now)

    async def run(
        self,
        model: str,
        version: int,
        call: Call[Answer],
        deadline: float,
        clock: Callable[[], float],
        patience: Patience | None = None,
    ) -> Answer:
        """Make a call for a version and learn from how it goes. Cancellation leaves the counters right.

        A call that is cancelled at its deadline has failed; one that is cancelled earlier says at least that
        it would have taken longer.

        Args:
            model: the model.
            version: its version.
            call: the call.
            deadline: when its answer is of no more use.
            clock: the monotonic clock.
            patience: when the replica is given up before the deadline; None: never.

        Raises:
            Unavailable: the replica was given up.
            SluiceError: what `call` raises.
        """
        of = model, version
        for breaker in self._breakers(of):
            breaker.start()
        self.in_flight += 1
        started = clock()
        try:
            answer = await self._limited(call, deadline - started, patience)
        except errors.SluiceError as error:
            self._met(error, of, started, clock())
            raise
        except BaseException:
            now = clock()
            if now >= deadline - _TIMER_SLACK_S:
                self._ran_out(of, started, now)
            else:
                self._learn(max(self.latency_s, now - started))
            raise
        else:
            self.answered_at = now = clock()
            self._answered(of)
            self.outcomes.add(of, failed=False, now=now)
            self._learn(now - started)
            return answer
        finally:
            self.in_flight -= 1
            for breaker in self._breakers(of):
                breaker.abandon()

    async def _limited(self, call: Call[Answer], left_s: float, patience: Patience | None) -> Answer:
        limit = asyncio.timeout(None)
        watch = None if patience is None else _Watch(limit, patience, self._limits)
        try:
            async with limit:
                self._limits[limit] = None
                try:
                    return await call(self.api, left_s)
                finally:
                    self._limits.pop(limit, None)
                    if watch is not None:
                        watch.end()
        except TimeoutError:
            self.breaker.trip()
            raise errors.Unavailable(f"the replica {self.address} does not answer", stage="backend") from None

    def _breakers(self, of: Version) -> Iterator[Breaker]:
        """The breakers that a call for a version goes through."""
        yield self.breaker
        if of in self.breakers:
            yield self.breakers[of]

    def _met(self, error: errors.SluiceError, of: Version, started: float, now: float) -> None:
        """A call met an error."""
        if isinstance(error, errors.Unavailable):
            self._failed(self.breaker, of, started, now)
        elif isinstance(error, errors.DeadlineExceeded):
            self._ran_out(of, started, now)
        elif isinstance(error, errors.Internal):  # a fault of the version on this replica
            self._failed(self.breakers.setdefault(of, Breaker()), of, started, now)
        else:  # the caller's fault, or the model's
            self._answered(of)
            if is_full(error):
                return
            self.answered_at = now
            if isinstance(error, errors.Overloaded):
                # Out of memory, say: if it is so more often than others, that is the replica's fault. It is
                # quick to say so, and would otherwise look like the least loaded.
                self.outcomes.add(of, failed=True, now=now)

    def _ran_out(self, of: Version, started: float, now: float) -> None:
        """A call was not answered by its deadline."""
        took_s = now - started
        if took_s >= FAIR_TIME_S:
            self._failed(self.breaker, of, started, now)
            return
        self._learn(max(self.latency_s, took_s))
        if took_s >= HASTY_TIME_S:
            self.outcomes.add(of, failed=True, now=now)

    def _answered(self, of: Version) -> None:
        self.breaker.succeed()
        self.breakers.pop(of, None)

    def _failed(self, breaker: Breaker, of: Version, started: float, now: float) -> None:
        breaker.fail(now, started)
        self.outcomes.add(of, failed=True, now=now)

    def _learn(self, latency_s: float) -> None:
        if self.latency_s == 0.0:
            self.latency_s = latency_s
        else:
            self.latency_s += _LATENCY_WEIGHT * (latency_s - self.latency_s)


class _Watch:
    """Ends a call that is not answered within its patience, unless this process was stalled meanwhile.

    It keeps waiting while an older call is in flight, which may be a heavy model's and be computed first, and
    while there is no other replica that could answer.

    Args:
        limit: the timeout around the call.
        patience: how long to wait, and whether there is another replica.
        in_flight: the timeouts of all calls on the replica, the oldest first; one that is ended leaves it.
    """

    def __init__(
        self, limit: asyncio.Timeout, patience: Patience, in_flight: dict[asyncio.Timeout, None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit = limit
        self._patience = patience
        self._in_flight = in_flight
        self._wait(patience.for_s)

    def _wait(self, wait_s: float) -> None:
        due = self._loop.time() + wait_s
        self._timer = self._loop.call_at(due, self._lose, due)

    def _lose(self, due: float) -> None:
        late_s = self._loop.time() - due
        if late_s > LATE_S:
            self._wait(late_s)
        elif next(iter(self._in_flight), self._limit) is not self._limit:
            self._wait(self._patience.for_s)
        elif not self._patience.others():
            self._wait(min(self._patience.for_s, LOOK_AGAIN_S))
        elif not self._limit.expired():
            self._in_flight.pop(self._limit, None)
            self._limit.reschedule(0.0)

    def end(self) -> None:
        """The call has ended; stop watching."""
        self._timer.cancel()

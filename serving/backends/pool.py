"""The replicas as one: which of them may answer, the choice among these, retries elsewhere.

A call names a model and a version; it goes to the less loaded of two random replicas on which that
version is AVAILABLE (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001).
"""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

import structlog

from serving import errors
from serving.backends.budget import RetryBudget
from serving.backends.hedging import first_good
from serving.backends.outliers import is_outlier
from serving.backends.replica import Answer, Call, Replica

_log = structlog.get_logger()

# What another replica may well do: the first was unreachable, full, broken, or lost the version just now.
RETRYABLE = (errors.Unavailable, errors.Overloaded, errors.Internal, errors.NotFound)
MAX_ATTEMPTS = 3
# After so long the same replica is tried again, where there is no other: it may have closed a connection.
SAME_REPLICA_PAUSE_S = 0.05
# When a caller may come back: a replica that restarts needs a few seconds to load TensorFlow and the model.
RETRY_AFTER_S = 2.0
STATUS_TIMEOUT_S = 2.0
# A replica that left gets this long to answer what it was asked; the default deadline of a request.
LEAVE_TIMEOUT_S = 30.0


class Slot:
    """One batch's place at a replica, taken before the batch is made; None: nobody could be reached."""

    def __init__(self, replica: Replica | None) -> None:
        self.replica = replica
        if replica is not None:
            replica.booked += 1

    @property
    def behind(self) -> bool:
        """Whether another batch is there already, which is computed first."""
        return self.replica is not None and self.replica.booked > 1

    def move(self, replica: Replica) -> None:
        """Take the place at another replica, which the batch is sent to instead."""
        if self.replica is not replica:
            self.release()
            self.replica = replica
            replica.booked += 1

    def release(self) -> None:
        """Give the place back."""
        if self.replica is not None:
            self.replica.booked -= 1
            self.replica = None


class Pool:
    """A set of replicas, which may change by `join` and `leave`.

    Args:
        replicas: the replicas to begin with; the pool closes them.
        calls_per_replica: batches that one replica is given at once.
        clock: the monotonic clock, in seconds.
        rng: what chooses the two replicas that are compared.

    Attributes:
        retries: calls that were made once more after a failure.
        hedges: calls that were made beside one that was late.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        *,
        calls_per_replica: int,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.replicas = tuple(replicas)
        self._leaving: list[tuple[Replica, float]] = []  # with when to close it at the latest
        self._calls_per_replica = calls_per_replica
        self._clock = clock
        self._rng = rng or random.Random()
        self._budget = RetryBudget()
        self.retries = 0
        self.hedges = 0

    def join(self, replica: Replica) -> None:
        """Take a replica in. It gets calls once it has been asked what it serves."""
        self.replicas = (*self.replicas, replica)

    def leave(self, address: str) -> None:
        """Give the replica at `address` nothing new; it is closed by `refresh` once its calls have ended."""
        close_at = self._clock() + LEAVE_TIMEOUT_S
        self._leaving += [(replica, close_at) for replica in self.replicas if replica.address == address]
        self.replicas = tuple(replica for replica in self.replicas if replica.address != address)

    def capacity(self, model: str, version: int) -> int:
        """How many batches for this version the usable replicas take at once."""
        return sum(self._slots(self._usable(model, version, self._clock())).values())

    def book(self, model: str, version: int) -> Slot | None:
        """A place for a batch for this version; None while every usable replica has all it takes at once.

        If none is usable there is a place all the same, so that the batch's callers hear why.
        """
        now = self._clock()
        usable = self._usable(model, version, now)
        if not usable:
            return Slot(None)
        chosen = choose(self._free(usable), self._rng, now)
        return None if chosen is None else Slot(chosen)

    def _free(self, usable: Sequence[Replica]) -> list[Replica]:
        return [replica for replica, slots in self._slots(usable).items() if replica.booked < slots]

    def _slots(self, usable: Sequence[Replica]) -> dict[Replica, int]:
        """How many batches each takes at once: fewer while it is newer than the others."""
        now = self._clock()
        weights = {replica: replica.weight(now) for replica in usable}
        most = max(weights.values(), default=1.0)
        return {
            replica: max(1, round(self._calls_per_replica * weight / most))
            for replica, weight in weights.items()
        }

    def reachable(self) -> bool:
        """Whether any replica answered when it was last asked."""
        return any(replica.reachable for replica in self.replicas)

    def availability(self, model: str) -> dict[int, int]:
        """Each version of `model` that is AVAILABLE somewhere reachable -> on how many replicas it is."""
        counts: dict[int, int] = {}
        for replica in self.replicas:
            for version in replica.versions.get(model, {}) if replica.reachable else ():
                if replica.has(model, version):
                    counts[version] = counts.get(version, 0) + 1
        return counts

    async def call(
        self,
        model: str,
        version: int,
        call: Call[Answer],
        *,
        deadline: float,
        slot: Slot | None = None,
        patience_s: float | None = None,
        hedge_after_s: float | None = None,
    ) -> Answer:
        """Make `call(api, timeout_s)` on a replica that has the version; retry elsewhere what may be retried.

        Args:
            model: the model.
            version: its version.
            call: what to do; it may be done more than once.
            deadline: when its answer is of no more use.
            slot: the place that was booked for it; it moves along with retries.
            patience_s: after how long another replica is asked if this one has not answered; None: never.
            hedge_after_s: after how long another one is asked, too, if it has a free place; None: never.

        Raises:
            Unavailable: no replica that has this version can be reached.
            NotFound: replicas answer, but none of them has this version any longer.
            SluiceError: what the last replica that was tried answered.
        """
        tried: list[Replica] = []
        last: errors.SluiceError | None = None
        self._budget.earn()
        while len(tried) < MAX_ATTEMPTS:
            now = self._clock()
            replica = self._pick(model, version, now, tried, last, slot)
            if replica is None or now >= deadline or (tried and not self._budget.spend(now)):
                break
            if replica in tried:
                await asyncio.sleep(SAME_REPLICA_PAUSE_S)
            if slot is not None:
                slot.move(replica)
            self.retries += bool(tried)
            tried.append(replica)
            alone = not self._usable(model, version, now, tried)
            attempt = functools.partial(self._attempt, model, version, call, deadline)
            first = attempt(replica, None if alone else patience_s)
            try:
                if alone or hedge_after_s is None:
                    return await first
                hedge = functools.partial(self._hedge, model, version, attempt, tried)
                return await first_good(first, hedge_after_s, hedge, retryable=RETRYABLE)
            except RETRYABLE as error:
                last = error
        if last is None and self._clock() >= deadline:
            raise errors.DeadlineExceeded("the deadline passed before a replica was free", stage="backend")
        if last is None and self.reachable() and not self._held(model, version):
            raise errors.NotFound(f'no replica has version {version} of model "{model}"', stage="backend")
        raise _with_advice(last, model, version)

    async def _attempt(
        self,
        model: str,
        version: int,
        call: Call[Answer],
        deadline: float,
        replica: Replica,
        patience_s: float | None = None,
    ) -> Answer:
        """Make a call on one replica, and learn about it."""
        try:
            return await replica.run(call, deadline, self._clock, patience_s)
        except RETRYABLE as error:
            if isinstance(error, errors.NotFound):
                replica.forget(model, version)
            self._judge(replica)
            raise

    def _hedge(
        self,
        model: str,
        version: int,
        attempt: Callable[[Replica], Coroutine[Any, Any, Answer]],
        tried: list[Replica],
    ) -> Coroutine[Any, Any, Answer] | None:
        """The same call on a replica that was not tried and has a free place, if the budget has it."""
        now = self._clock()
        replica = choose(self._free(self._usable(model, version, now, tried)), self._rng, now)
        if replica is None or not self._budget.spend(now):
            return None
        self.hedges += 1
        tried.append(replica)
        return _in_a_place(attempt, replica)

    def _pick(
        self,
        model: str,
        version: int,
        now: float,
        tried: Sequence[Replica],
        last: errors.SluiceError | None,
        slot: Slot | None,
    ) -> Replica | None:
        """The replica for the next attempt: the booked one, one that was not tried, or the same again."""
        usable = self._usable(model, version, now, tried)
        if not tried and slot is not None and slot.replica in usable:
            return slot.replica
        if not usable and isinstance(last, errors.Unavailable):
            usable = self._usable(model, version, now)
        return choose(usable, self._rng, now)

    def _judge(self, replica: Replica) -> None:
        """Leave a replica alone that fails much more often than the others."""
        now = self._clock()
        others = [other.outcomes for other in self.replicas if other is not replica and other.reachable]
        if is_outlier(replica.outcomes, others, now):
            replica.outcomes.eject(now)
            _log.warning(
                "a replica fails more often than the others; it is left alone", replica=replica.address
            )

    def _held(self, model: str, version: int) -> bool:
        """Whether any reachable replica has the version, be it well or not."""
        return any(replica.reachable and replica.has(model, version) for replica in self.replicas)

    def _usable(self, model: str, version: int, now: float, tried: Sequence[Replica] = ()) -> list[Replica]:
        return [
            replica
            for replica in self.replicas
            if replica not in tried and replica.usable(model, version, now)
        ]

    async def refresh(self, models: Iterable[str]) -> None:
        """Ask every replica which versions of `models` it has. One that does not answer is not reachable."""
        names = list(models)
        await self._close_idle()
        async with asyncio.TaskGroup() as tasks:
            for replica in self.replicas:
                tasks.create_task(self._refresh_one(replica, names))

    async def _close_idle(self) -> None:
        """Close replicas that have left and have no call in flight, or have had long enough."""
        now = self._clock()
        done = [replica for replica, close_at in self._leaving if not replica.in_flight or now >= close_at]
        self._leaving = [each for each in self._leaving if each[0] not in done]
        for replica in done:
            await replica.api.close()

    async def _refresh_one(self, replica: Replica, models: Sequence[str]) -> None:
        try:
            await self._ask_versions(replica, models)
        except errors.SluiceError:
            replica.went()
            if self.reachable():
                replica.give_up()
        else:
            replica.came(self._clock())

    async def _ask_versions(self, replica: Replica, models: Sequence[str]) -> None:
        """Learn what the replica has; once more if its connection broke just then, as it may at any time."""
        for again in (True, False) if replica.reachable else (False,):
            try:
                for model in models:
                    replica.versions[model] = await replica.api.status(model, STATUS_TIMEOUT_S)
            except errors.Unavailable:
                if not again:
                    raise
                await asyncio.sleep(SAME_REPLICA_PAUSE_S)
            else:
                return

    async def reload_config(self, config: Any, timeout_s: float) -> None:
        """Give every replica a new model configuration (ModelServerConfig), one after the other.

        Raises:
            SluiceError: a replica could not take it; those before it have.
        """
        for replica in self.replicas:
            await replica.api.reload_config(config, timeout_s)

    async def aclose(self) -> None:
        """Close every connection."""
        for replica in (*self.replicas, *(replica for replica, _ in self._leaving)):
            await replica.api.close()


async def _in_a_place(attempt: Callable[[Replica], Coroutine[Any, Any, Answer]], replica: Replica) -> Answer:
    slot = Slot(replica)
    try:
        return await attempt(replica)
    finally:
        slot.release()


def choose(usable: Sequence[Replica], rng: random.Random, now: float) -> Replica | None:
    """The less loaded of two random ones: fewer calls in flight, then lower latency. None of none."""
    if not usable:
        return None
    if len(usable) == 1:
        return usable[0]
    first, second = rng.sample(usable, 2)
    return min(first, second, key=lambda replica: replica.load(now))


def _with_advice(error: errors.SluiceError | None, model: str, version: int) -> errors.SluiceError:
    """The error for a caller whose attempts are spent: with when to come back, where that may help."""
    if error is None:
        return errors.Unavailable(
            f'no replica that has version {version} of model "{model}" can be reached at the moment',
            stage="backend",
            retry_after_s=RETRY_AFTER_S,
        )
    if error.retryable and error.retry_after_s is None:
        error.retry_after_s = RETRY_AFTER_S
    return error

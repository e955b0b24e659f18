"""The replicas as one: which may answer, load balancing among them, and retries elsewhere.

A call names a model and a version; it goes to the less loaded of two random replicas on which that
version is AVAILABLE (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001).
"""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple

from serving import errors
from serving.backends.budget import RetryBudget
from serving.backends.hedging import first_good
from serving.backends.members import SAME_REPLICA_PAUSE_S, Members
from serving.backends.replica import LOOK_AGAIN_S, Answer, Call, Patience, Replica
from serving.backends.room import Waiting
from serving.backends.tfserving import is_full

# Another replica may well succeed: the first was unreachable, full, broken, or has just lost the version.
RETRYABLE = (errors.Unavailable, errors.Overloaded, errors.Internal, errors.NotFound)
MAX_ATTEMPTS = 3
# When a caller may come back: a replica that restarts needs a few seconds to load TensorFlow and the model.
RETRY_AFTER_S = 2.0
# After this long, a call whose usual duration is unknown is also made on a replica that joined meanwhile, or
# on any other if its own seems to hang: a sixth of the time that requests have by default, and longer than
# most models take to warm up.
UNKNOWN_PATIENCE_S = 5.0


class Slot:
    """One batch's place at a replica, taken before the batch is made.

    Args:
        replica: where it is; None: no replica could be reached.
        model: the batch's model.
        version: its version.
    """

    def __init__(self, replica: Replica | None, model: str, version: int) -> None:
        self._lane = model, version
        self.replica: Replica | None = None
        if replica is not None:
            self.move(replica)

    @property
    def behind(self) -> bool:
        """Whether another batch of the version is there already, and will be computed first."""
        return self.replica is not None and self.replica.booked_of[self._lane] > 1

    def move(self, replica: Replica) -> None:
        """Take the place at another replica, which the batch is sent to instead."""
        if self.replica is not replica:
            self.release()
            self.replica = replica
            replica.book(*self._lane)

    def release(self) -> None:
        """Give the place back."""
        if self.replica is not None:
            self.replica.give_back(*self._lane)
            self.replica = None


@dataclass(frozen=True, slots=True)
class _Task(Generic[Answer]):
    """What `Pool.call` is asked to do; see there."""

    model: str
    version: int
    call: Call[Answer]
    deadline: float
    patience_s: float | None
    hedge_after_s: float | None


class _Late(NamedTuple):
    """A replica that was asked, and when."""

    replica: Replica
    since: float


class Pool(Members):
    """A set of replicas, which may change by `join` and `leave`, called as one.

    Args:
        replicas: the replicas to begin with; the pool closes them.
        calls_per_replica: batches that one replica is given at once.
        clock: the monotonic clock, in seconds.
        rng: chooses the two replicas that are compared.

    Attributes:
        retries: calls that were retried after a failure.
        hedges: second calls that were made while a first one was late.
        freed: called when there may be a place for a batch, other than one that a batch itself gave back.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        *,
        calls_per_replica: int,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__(replicas, clock)
        self._calls_per_replica = calls_per_replica
        self._rng = rng or random.Random()
        self._budget = RetryBudget()
        self._waiting: Waiting[Replica] = Waiting()
        self.retries = 0
        self.hedges = 0
        self.freed: Callable[[], None] = lambda: None

    async def refresh(self, models: Iterable[str]) -> None:
        """Ask every replica which versions of `models` it has. One that does not answer is not reachable."""
        await super().refresh(models)
        self._waiting.look_again()
        self.freed()  # a replica may have come, or be warm by now, or be allowed another try

    def book(self, model: str, version: int) -> Slot | None:
        """A place for a batch for this version; None while every usable replica is full and has a batch of
        this model.

        If none is usable there is a place all the same, so that the batch's callers hear why.
        """
        now = self._clock()
        usable = self._usable(model, version, now)
        if not usable:
            return Slot(None, model, version)
        chosen = choose(self._free(usable, model), self._rng, now)
        return None if chosen is None else Slot(chosen, model, version)

    def _free(self, usable: Sequence[Replica], model: str) -> list[Replica]:
        """Those with a place for a batch of a model.

        Models share a replica's places, but each has one there in any case: replicas compute several batches
        at once, and a light model must not wait until a heavy one is done.
        """
        return [
            replica
            for replica, slots in self._slots(usable).items()
            if replica.booked < slots or not replica.has_batch_of(model)
        ]

    def _slots(self, usable: Sequence[Replica]) -> dict[Replica, int]:
        """How many batches each takes at once: fewer while it is newer than the others."""
        now = self._clock()
        weights = {replica: replica.weight(now) for replica in usable}
        most = max(weights.values(), default=1.0)
        return {
            replica: max(1, round(self._calls_per_replica * weight / most))
            for replica, weight in weights.items()
        }

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

        It waits while every such replica has as many calls as it takes at once; a batch, which has booked its
        place, goes before other calls.

        Args:
            model: the model.
            version: its version.
            call: what to do; it may be done more than once.
            deadline: when its answer is of no more use.
            slot: the place that was booked for it; it moves along with retries.
            patience_s: after how long this replica is given up for another one; if there is none by then, for
                one that joins later. None: the call's usual duration is unknown, and this replica is waited
                for; after `UNKNOWN_PATIENCE_S` one that joined meanwhile is called as well, or any other if
                this one seems to hang.
            hedge_after_s: after how long a second replica is called as well, if it has a free place; None:
                never.

        Raises:
            Unavailable: no replica that has this version can be reached.
            NotFound: replicas answer, but none of them has this version any longer.
            SluiceError: what the last replica that was tried answered.
        """
        task = _Task(model, version, call, deadline, patience_s, hedge_after_s)
        tried: list[Replica] = []
        last: errors.SluiceError | None = None
        self._budget.earn()
        while (replica := await self._next(task, slot, tried, last)) is not None:
            try:
                return await self._try(task, replica, slot, tried)
            except RETRYABLE as error:
                last = errors.without_frames(error)  # it would hold this call's frame, which holds it
            finally:
                self._waiting.leave(replica)
        if last is None and self._clock() >= deadline:
            raise errors.DeadlineExceeded("the deadline passed before a replica was free", stage="backend")
        if last is None and self.reachable() and not self._held(model, version):
            raise errors.NotFound(f'no replica has version {version} of model "{model}"', stage="backend")
        try:
            raise _with_advice(last, model, version)
        finally:
            del last

    async def _next(
        self, task: _Task[Any], slot: Slot | None, tried: Sequence[Replica], last: errors.SluiceError | None
    ) -> Replica | None:
        """Take a place at a replica for the next attempt, once one has room; None: no further attempt."""
        if len(tried) >= MAX_ATTEMPTS:
            return None
        may_retry = not tried
        while usable := self._candidates(task, tried, last):
            now = self._clock()
            if now >= task.deadline:
                return None
            may_retry = may_retry or self._budget.spend(now)
            if not may_retry:
                return None
            replica = self._take(usable, None if slot is None else slot.replica, now)
            if replica is not None:
                return replica
            ahead = slot is not None or is_full(last)
            find = functools.partial(self._candidates, task, tried, last)
            replica = await self._waiting.place(find, task.deadline - now, ahead=ahead)
            if replica is None or replica in self._usable(task.model, task.version, self._clock()):
                return replica
            self._waiting.leave(replica)  # it became unusable, or left the pool, while this call waited
        return None

    def _candidates(
        self, task: _Task[Any], tried: Sequence[Replica], last: errors.SluiceError | None
    ) -> list[Replica]:
        """The replicas for the next attempt: untried ones, or else the same ones again."""
        now = self._clock()
        usable = self._usable(task.model, task.version, now, tried)
        if not usable and isinstance(last, errors.Unavailable):
            usable = self._usable(task.model, task.version, now)
        return usable

    def _take(self, usable: Sequence[Replica], booked: Replica | None, now: float) -> Replica | None:
        """Take a place at the booked replica, or at one that has room; None: all are full."""
        free = [replica for replica in usable if replica.room.free]
        replica = booked if booked in free else choose(free, self._rng, now)
        if replica is not None:
            replica.room.take()
        return replica

    async def _try(
        self, task: _Task[Answer], replica: Replica, slot: Slot | None, tried: list[Replica]
    ) -> Answer:
        """Make a call on a replica, and on a second one if the first is late; both count as tried."""
        if replica in tried:
            await asyncio.sleep(SAME_REPLICA_PAUSE_S)
        if slot is not None:
            slot.move(replica)
        self.retries += bool(tried)
        tried.append(replica)
        first = self._attempt(task, replica, tried, task.patience_s)
        hedge = functools.partial(self._hedge, task, tried, is_batch=slot is not None)
        if task.hedge_after_s is not None:
            return await first_good(first, task.hedge_after_s, hedge, retryable=RETRYABLE)
        if task.patience_s is not None:
            return await first
        overtake = functools.partial(hedge, late=_Late(replica, self._clock()))
        return await first_good(
            first, UNKNOWN_PATIENCE_S, overtake, retryable=RETRYABLE, again_s=LOOK_AGAIN_S
        )

    async def _attempt(
        self, task: _Task[Answer], replica: Replica, tried: list[Replica], patience_s: float | None = None
    ) -> Answer:
        """Make a call on one replica, where it has a place, and learn about the replica.

        One that was full has not been tried: it did not look at the call.
        """
        tried_before = tuple(tried)

        def others() -> bool:
            return bool(self._usable(task.model, task.version, self._clock(), tried_before))

        patience = None if patience_s is None else Patience(patience_s, others)
        try:
            answer = await replica.run(
                task.model, task.version, task.call, task.deadline, self._clock, patience
            )
        except BaseException as error:  # cancelled at the deadline, too: that says something of the replica
            self._judge(replica, task.model, task.version)
            if isinstance(error, errors.NotFound):
                replica.forget(task.model, task.version)
            elif is_full(error):
                replica.room.refused()
                tried.remove(replica)
                if replica.room.taken == 1:  # others fill it, and nobody here hears when they are done
                    await asyncio.sleep(SAME_REPLICA_PAUSE_S)
            raise
        replica.room.answered()
        return answer

    def _hedge(
        self, task: _Task[Answer], tried: list[Replica], *, is_batch: bool, late: _Late | None = None
    ) -> Coroutine[Any, Any, Answer] | None:
        """The same call on an untried replica with a free place, if the retry budget allows it.

        If `late` is given, only on a replica that has come since that one was called, or whose own answers
        show that the late one hangs.
        """
        now = self._clock()
        usable = self._usable(task.model, task.version, now, tried)
        if is_batch:
            usable = self._free(usable, task.model)
        if late is not None:
            of = task.model, task.version
            usable = [
                each
                for each in usable
                if late.since < each.reachable_since or late.replica.hangs(of, late.since, each, now)
            ]
        free = [each for each in usable if each.room.free]
        replica = choose(free, self._rng, now)
        if replica is None or not self._budget.spend(now):
            return None
        self.hedges += 1
        tried.append(replica)
        return self._beside(task, replica, tried, is_batch=is_batch, late=late)

    async def _beside(
        self,
        task: _Task[Answer],
        replica: Replica,
        tried: list[Replica],
        *,
        is_batch: bool,
        late: _Late | None,
    ) -> Answer:
        """Make a hedged call, which takes places of its own."""
        slot = Slot(replica if is_batch else None, task.model, task.version)
        replica.room.take()
        try:
            answer = await self._attempt(task, replica, tried)
            if late is not None:
                late.replica.overtaken(task.model, task.version, late.since, self._clock())
        except asyncio.CancelledError as error:  # the task keeps the error, whose frames refer to the task
            errors.without_frames(error)
            raise
        else:
            return answer
        finally:
            self._waiting.leave(replica)
            slot.release()
            self.freed()


def choose(usable: Sequence[Replica], rng: random.Random, now: float) -> Replica | None:
    """The less loaded of two random ones: fewer calls in flight, then lower latency. None out of none."""
    if not usable:
        return None
    if len(usable) == 1:
        return usable[0]
    first, second = rng.sample(usable, 2)
    return min(first, second, key=lambda replica: replica.load(now))


def _with_advice(error: errors.SluiceError | None, model: str, version: int) -> errors.SluiceError:
    """The error for a caller whose attempts are used up, saying when to retry if that may help."""
    if error is None:
        return errors.Unavailable(
            f'no replica that has version {version} of model "{model}" can be reached at the moment',
            stage="backend",
            retry_after_s=RETRY_AFTER_S,
        )
    if error.retryable and error.retry_after_s is None:
        error.retry_after_s = RETRY_AFTER_S
    return error

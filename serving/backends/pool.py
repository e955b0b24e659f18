"""The replicas as one: which of them may answer, the choice among these, retries elsewhere.

A call names a model and a version; it goes to the less loaded of two random replicas on which that
version is AVAILABLE (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from serving import errors
from serving.backends.replica import Answer, Call, Replica

# What another replica may well do: the first was unreachable, full, broken, or lost the version just now.
RETRYABLE = (errors.Unavailable, errors.Overloaded, errors.Internal, errors.NotFound)
MAX_ATTEMPTS = 3
# When a caller may come back: a replica that restarts needs a few seconds to load TensorFlow and the model.
RETRY_AFTER_S = 2.0
STATUS_TIMEOUT_S = 2.0
# A replica that left gets this long to answer what it was asked; the default deadline of a request.
LEAVE_TIMEOUT_S = 30.0


class Pool:
    """A set of replicas, which may change by `join` and `leave`.

    Args:
        replicas: the replicas to begin with; the pool closes them.
        calls_per_replica: calls that one replica is given at once.
        clock: the monotonic clock, in seconds.
        rng: what chooses the two replicas that are compared.
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

    def join(self, replica: Replica) -> None:
        """Take a replica in. It gets calls once it has been asked what it serves."""
        self.replicas = (*self.replicas, replica)

    def leave(self, address: str) -> None:
        """Give the replica at `address` nothing new; it is closed by `refresh` once its calls have ended."""
        close_at = self._clock() + LEAVE_TIMEOUT_S
        self._leaving += [(replica, close_at) for replica in self.replicas if replica.address == address]
        self.replicas = tuple(replica for replica in self.replicas if replica.address != address)

    def capacity(self, model: str, version: int) -> int:
        """How many calls for this version the usable replicas take at once."""
        now = self._clock()
        usable = sum(replica.usable(model, version, now) for replica in self.replicas)
        return usable * self._calls_per_replica

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
    ) -> Answer:
        """Make `call(api, timeout_s)` on a replica that has the version; retry elsewhere what may be retried.

        Raises:
            Unavailable: no replica that has this version can be reached.
            NotFound: replicas answer, but none of them has this version any longer.
            SluiceError: what the last replica that was tried answered.
        """
        tried: list[Replica] = []
        last: errors.SluiceError | None = None
        while len(tried) < MAX_ATTEMPTS:
            now = self._clock()
            replica = choose(self._usable(model, version, now, tried), self._rng)
            if replica is None or now >= deadline:
                break
            tried.append(replica)
            try:
                return await replica.run(call, deadline, self._clock)
            except RETRYABLE as error:
                last = error
                if isinstance(error, errors.NotFound):
                    replica.forget(model, version)
        if last is None and self._clock() >= deadline:
            raise errors.DeadlineExceeded("the deadline passed before a replica was free", stage="backend")
        if last is None and self.reachable() and not self._held(model, version):
            raise errors.NotFound(f'no replica has version {version} of model "{model}"', stage="backend")
        raise _with_advice(last, model, version)

    def _held(self, model: str, version: int) -> bool:
        """Whether any reachable replica has the version, be it well or not."""
        return any(replica.reachable and replica.has(model, version) for replica in self.replicas)

    def _usable(self, model: str, version: int, now: float, tried: Iterable[Replica]) -> list[Replica]:
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
            for model in models:
                replica.versions[model] = await replica.api.status(model, STATUS_TIMEOUT_S)
        except errors.SluiceError:
            replica.reachable = False
            replica.versions.clear()
        else:
            replica.reachable = True

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


def choose(usable: Sequence[Replica], rng: random.Random) -> Replica | None:
    """The less loaded of two random ones: fewer calls in flight, then lower latency. None of none."""
    if not usable:
        return None
    if len(usable) == 1:
        return usable[0]
    first, second = rng.sample(usable, 2)
    return min(first, second, key=lambda replica: (replica.in_flight, replica.latency_s))


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

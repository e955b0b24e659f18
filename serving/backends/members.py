"""The replicas of a pool: which there are, what each serves, and which are healthy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import structlog

from serving import errors
from serving.backends.outliers import is_outlier
from serving.backends.replica import LATE_S, Replica
from serving.backends.silence import TELL_AFTER_S, Silence
from serving.backends.tfserving import VersionStatus, is_full

_log = structlog.get_logger()

# If there is no other replica the same one is tried again after this: it may have closed a connection.
SAME_REPLICA_PAUSE_S = 0.05
STATUS_TIMEOUT_S = 2.0
# A replica that left gets this long to finish its calls: the default deadline of a request.
LEAVE_TIMEOUT_S = 30.0


class Members:
    """A set of replicas, which may change by `join` and `leave`.

    Args:
        replicas: the replicas to begin with; they are closed with this.
        clock: the monotonic clock, in seconds.
    """

    def __init__(self, replicas: Sequence[Replica], clock: Callable[[], float] = time.monotonic) -> None:
        self.replicas = tuple(replicas)
        self._leaving: list[tuple[Replica, float]] = []  # with when to close it at the latest
        self._clock = clock
        self._silence = Silence()

    def join(self, replica: Replica) -> None:
        """Take a replica in. It gets calls once it has been asked what it serves."""
        self.replicas = (*self.replicas, replica)

    def leave(self, address: str) -> None:
        """Give the replica at `address` nothing new; it is closed by `refresh` once its calls have ended."""
        close_at = self._clock() + LEAVE_TIMEOUT_S
        self._leaving += [(replica, close_at) for replica in self.replicas if replica.address == address]
        self.replicas = tuple(replica for replica in self.replicas if replica.address != address)
        self._silence.ended(address)

    def reachable(self) -> bool:
        """Whether any replica answered when it was last asked."""
        return any(replica.reachable for replica in self.replicas)

    def availability(self, model: str) -> dict[int, int]:
        """Each version of `model` that is AVAILABLE somewhere reachable -> on how many replicas it is."""
        counts: dict[int, int] = {}
        for replica in self.replicas:  # on every request, for a whole fleet: no function call per version
            if replica.reachable:
                for version, status in replica.versions.get(model, {}).items():
                    if status.state == "AVAILABLE":
                        counts[version] = counts.get(version, 0) + 1
        return counts

    def _held(self, model: str, version: int) -> bool:
        """Whether any reachable replica has the version, healthy or not."""
        return any(replica.reachable and replica.has(model, version) for replica in self.replicas)

    def _usable(self, model: str, version: int, now: float, tried: Sequence[Replica] = ()) -> list[Replica]:
        """The replicas for a call. If all of them fail the version's calls, they are called all the same.

        Its callers should hear what is wrong with the version, and so should a rollout.
        """
        usable = [
            replica
            for replica in self.replicas
            if replica not in tried and replica.usable(model, version, now)
        ]
        return [replica for replica in usable if replica.does_well(model, version, now)] or usable

    def _judge(self, replica: Replica, model: str, version: int) -> None:
        """Eject a replica that fails a version's calls much more often than the others."""
        now = self._clock()
        others = [other.outcomes for other in self.replicas if other is not replica and other.reachable]
        if is_outlier(replica.outcomes, others, (model, version), now):
            replica.outcomes.eject(now)
            _log.warning(
                "a replica fails more often than the others; it gets no calls for a while",
                replica=replica.address,
            )

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
        except errors.SluiceError as error:
            replica.went()
            if self.reachable():
                replica.give_up()
            # One that left while it was asked is no longer ours, and its address may soon be another's.
            if replica in self.replicas and self._silence.to_tell(replica.address, self._clock()):
                _log.warning(
                    f"a replica has not said for {TELL_AFTER_S:.0f} s what it serves",
                    replica=replica.address,
                    error=error.message,
                )
        else:
            replica.came(self._clock())
            if self._silence.ended(replica.address):
                _log.info("a replica says again what it serves", replica=replica.address)

    async def _ask_versions(self, replica: Replica, models: Sequence[str]) -> None:
        """Learn what the replica has; try twice, since its connection may break at any time."""
        for again in (True, False) if replica.reachable else (False,):
            try:
                for model in models:
                    replica.versions[model] = await self._status(replica, model)
            except errors.Unavailable:
                if not again:
                    raise
                await asyncio.sleep(SAME_REPLICA_PAUSE_S)
            else:
                return

    async def _status(self, replica: Replica, model: str) -> dict[int, VersionStatus]:
        """The versions that the replica has of a model; the last known ones if it is only slow to answer."""
        started = self._clock()
        try:
            return await replica.api.status(model, STATUS_TIMEOUT_S)
        except (errors.Overloaded, errors.DeadlineExceeded) as error:
            if replica.reachable and self._lives(replica, error, started):
                return replica.versions.get(model, {})
            raise

    def _lives(self, replica: Replica, error: errors.SluiceError, started: float) -> bool:
        """Whether a replica that did not say what it has is only busy, or this process was stalled."""
        if is_full(error) or replica.answered_at > started:
            return True
        took_s = self._clock() - started
        return isinstance(error, errors.DeadlineExceeded) and took_s > STATUS_TIMEOUT_S + LATE_S

    async def reload_config(self, config: Any, timeout_s: float) -> None:
        """Give every replica a new model configuration (ModelServerConfig), all at once.

        Raises:
            SluiceError: a replica could not take it; the others may have.
        """
        told = await asyncio.gather(
            *(replica.api.reload_config(config, timeout_s) for replica in self.replicas),
            return_exceptions=True,
        )
        for error in filter(None, told):
            raise error

    async def aclose(self) -> None:
        """Close every connection."""
        for replica in (*self.replicas, *(replica for replica, _ in self._leaving)):
            await replica.api.close()

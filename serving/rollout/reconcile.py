"""Makes replicas hold the versions that they should, through ModelService, and again after a restart."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from serving import protos
from serving.backends.pool import Pool
from serving.backends.replica import Replica
from serving.errors import SluiceError
from serving.rollout.fleet import Holdings, Seen

_log = structlog.get_logger()

_RELOAD_TIMEOUT_S = 60.0
# How long one look at the rollouts waits: a replica that hangs must not hold up others, nor commands.
_PATIENCE_S = 1.0
# A replica whose states do not follow its config (it was restarted) is given it again after this.
_REPEAT_S = 3.0

_COMING = frozenset(("START", "LOADING", "AVAILABLE"))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one model should look like: versions by replica, and those labelled stable and candidate."""

    holdings: Holdings
    labels: Mapping[str, int]


@dataclass(slots=True)
class _Told:
    config: bytes
    at: float


class Reconciler:
    """Owns the model configuration of every replica of a pool.

    HandleReloadConfigRequest replaces the whole configuration, so every config names every model. A label may
    only point at a version that is AVAILABLE there: a config with one that is not would be stored and then
    refused. So labels follow the states, replica by replica.

    Args:
        pool: The replicas.
        base_path: Where the replicas find a model's versions.
        on_config: Called with the config that a replica which starts now should read: without labels, since
            nothing is AVAILABLE then.
        clock: The monotonic clock, in seconds.
    """

    def __init__(
        self,
        pool: Pool,
        base_path: Callable[[str], str],
        on_config: Callable[[Any], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_config = on_config
        self._pool = pool
        self._base_path = base_path
        self._clock = clock
        self._told: dict[str, _Told] = {}
        self._under_way: dict[str, asyncio.Task[None]] = {}

    def seen(self, model: str) -> list[Seen]:
        """Each replica with the states of the model's versions, as of the last time it was asked."""
        return [
            Seen(replica.address, replica.reachable, dict(replica.versions.get(model, {})))
            for replica in self._pool.replicas
        ]

    async def apply(self, wanted: Mapping[str, Wanted]) -> None:
        """Configures the replicas that need it, all at once. One that cannot be reached gets its turn later.

        One that takes longer than a look is no longer waited for; when it is done, it is given what is wanted
        by then.
        """
        if not wanted:
            return
        if self._on_config is not None:
            self._on_config(self.config(self._pool.replicas[0].address, wanted))
        under_way = {address: task for address, task in self._under_way.items() if not task.done()}
        started = {
            replica.address: asyncio.create_task(self._apply_to(replica, wanted))
            for replica in self._pool.replicas
            if replica.address not in under_way
        }
        self._under_way = under_way | started
        self._told = {address: told for address, told in self._told.items() if address in self._under_way}
        if started:
            done, _ = await asyncio.wait(started.values(), timeout=_PATIENCE_S)
            for task in done:
                task.result()

    async def close(self) -> None:
        """Stops waiting for replicas."""
        for task in self._under_way.values():
            task.cancel()
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)

    async def _apply_to(self, replica: Replica, wanted: Mapping[str, Wanted]) -> None:
        if not replica.reachable:
            self._told.pop(replica.address, None)
            return
        config = self.config(replica.address, wanted, replica)
        serialized = config.SerializeToString(deterministic=True)
        told = self._told.get(replica.address)
        if told is not None and told.config == serialized:
            follows = all(
                _follows(replica, model, each.holdings.get(replica.address, frozenset()))
                for model, each in wanted.items()
            )
            if follows or self._clock() - told.at < _REPEAT_S:
                return
        self._told[replica.address] = _Told(serialized, self._clock())
        try:
            await replica.api.reload_config(config, _RELOAD_TIMEOUT_S)
        except SluiceError as error:
            self._told.pop(replica.address, None)
            _log.warning(
                "a replica did not take its model config", replica=replica.address, error=error.message
            )

    def config(self, address: str, wanted: Mapping[str, Wanted], replica: Replica | None = None) -> Any:
        """The ModelServerConfig of one replica; without `replica` one that names no labels."""
        config = protos.ModelServerConfig()
        for model, each in sorted(wanted.items()):
            entry = config.model_config_list.config.add(
                name=model, base_path=self._base_path(model), model_platform="tensorflow"
            )
            versions = each.holdings.get(address) or _any(each.holdings.values())
            entry.model_version_policy.specific.versions.extend(sorted(versions))
            for label, version in each.labels.items():
                if replica is not None and version in versions and replica.has(model, version):
                    entry.version_labels[label] = version
        return config


def _any(holdings: Iterable[frozenset[int]]) -> frozenset[int]:
    return next(iter(holdings), frozenset())


def _follows(replica: Replica, model: str, versions: frozenset[int]) -> bool:
    """Whether the replica's states match its config: each version is there, or coming, or failed."""
    statuses = replica.versions.get(model, {})
    for version in versions:
        status = statuses.get(version)
        if status is None or not (status.state in _COMING or (status.state == "END" and status.error)):
            return False
    return all(version in versions or status.state != "AVAILABLE" for version, status in statuses.items())

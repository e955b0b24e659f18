"""What the gateway knows about models: which versions there are, where, and which one a caller means.

Everything comes through TensorFlow Serving's own API: states from GetModelStatus, what a version takes and
gives from its signatures (`serving.learning`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from serving.backends.pool import RETRY_AFTER_S, Pool
from serving.backends.tfserving import VersionStatus
from serving.errors import FailedPrecondition, InvalidInput, NotFound, Unavailable
from serving.learning import Learner, VersionName
from serving.model_version import ModelVersion
from serving.prediction import ModelRef
from serving.telemetry.metrics import Metrics

_log = structlog.get_logger()

LABEL_TIMEOUT_S = 10.0
# How long a round of status calls waits to learn about new versions. Most are known within milliseconds; a
# slow one must not keep the gateway from hearing how all its replicas are.
LEARN_PATIENCE_S = 2.0
# A label may move at any time. Once its version is gone it is looked up sooner.
LABEL_TTL_S = 1.0


@dataclass(frozen=True, slots=True)
class VersionReport:
    """One version for people to read: its furthest state on any replica, and why it failed if it did.

    `error_code` is the one that the replica reported (a `google.rpc.Code`).
    """

    version: int
    state: str
    available_on: int
    error: str | None
    error_code: int

    @property
    def ended_well(self) -> bool:
        """Whether it was unloaded without an error. Replicas report such versions until they restart."""
        return self.state == "END" and self.error is None


@dataclass(frozen=True, slots=True)
class ModelReport:
    """One model for people to read."""

    name: str
    default: bool
    versions: list[VersionReport]


# While a model has no version at all, requests are being refused: look more often.
_MISSING_INTERVAL_S = 0.2
# But no more often than this, however many ask for such a model, or for a version that was just unloaded.
LEAST_INTERVAL_S = 0.05

# How many unloaded versions are shown, the newest: publishing hourly leaves thousands of them in time.
_MOST_ENDED = 10

# A version is shown by the state that is furthest to the right here.
_STATE_ORDER = ("UNKNOWN", "END", "UNLOADING", "START", "LOADING", "AVAILABLE")


def preferred_version(replicas_with: Mapping[int, int]) -> int:
    """The version for requests that name none: the one on the most replicas, and of those the newest.

    The newest alone would send everything to the first replica that has loaded a new version.
    """
    return max(replicas_with, key=lambda version: (replicas_with[version], version))


class Catalog:
    """The models of one gateway, kept up to date by `watch`.

    Args:
        pool: the replicas.
        models: the names of the models to serve.
        default_model: the model of requests that name none; None: the only one, if there is just one.
        metrics: where the available versions are shown.
        clock: the monotonic clock, in seconds.

    Attributes:
        asked: whether the replicas have ever been asked what they have.
    """

    def __init__(
        self,
        pool: Pool,
        models: Iterable[str],
        *,
        default_model: str | None,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._default = default_model
        self._metrics = metrics
        self._clock = clock
        self.asked = False
        self._was_complete = False
        self._known: dict[str, dict[int, ModelVersion]] = {name: {} for name in sorted(set(models))}
        self._labels: dict[tuple[str, str], tuple[int, float]] = {}
        self._learner = Learner(pool, self._learned, clock)
        self._waiters: list[asyncio.Future[None]] = []
        self._wanted = asyncio.Event()
        self._round_ended = asyncio.Event()

    def names(self) -> list[str]:
        """The names of the models, sorted."""
        return list(self._known)

    def set_models(self, models: Iterable[str]) -> None:
        """Serve these models from now on; what is known of those that stay is kept."""
        self._known = {name: self._known.get(name, {}) for name in sorted(set(models))}

    def versions(self, name: str) -> dict[int, ModelVersion]:
        """The versions of a model that can be served now, by number."""
        return self._among(name, self._pool.availability(name))

    def is_there(self, name: str, version: int) -> bool:
        """Whether a replica has this version now, even if nothing else is known of it yet."""
        return version in self._pool.availability(name)

    def _among(self, name: str, available: Mapping[int, int]) -> dict[int, ModelVersion]:
        known = self._known.get(name, {})  # the models may have changed while its caller waited
        return {number: each for number, each in known.items() if number in available}

    def default_name(self) -> str | None:
        """The model of requests that name none, if there is one."""
        return self._default or (next(iter(self._known)) if len(self._known) == 1 else None)

    def version(self, name: str, number: int) -> ModelVersion:
        """What is known of a version; raises NotFound if it is not, or no longer, known."""
        known = self._known.get(name, {}).get(number)
        if known is None:
            raise NotFound(f'version {number} of model "{name}" is no longer served', stage="routing")
        return known

    def resolve_name(self, name: str | None) -> str:
        """The model that a caller means; raises NotFound or InvalidInput, naming those that exist."""
        if name is None:
            name = self.default_name()
        if name is not None and name in self._known:
            return name
        there = ", ".join(self._known) or "none"
        if name is None:
            raise InvalidInput(f"no default model is set; name one of: {there}", stage="routing")
        raise NotFound(f'model "{name}" is not configured; there are: {there}', stage="routing")

    def resolve(self, ref: ModelRef) -> ModelVersion:
        """The version that serves `ref`.

        Raises:
            NotFound: there is no such model, or no such version of it.
            Unavailable: the model has no version that can be reached now.
        """
        name = self.resolve_name(ref.name)
        replicas_with = self._pool.availability(name)
        versions = self._among(name, replicas_with)
        if not versions:
            raise self._out_of_reach(name)
        if ref.version is None:
            # Labels must not turn into numbers because the newest version's are not known.
            usual = [each for each, known in versions.items() if known.described] or versions
            return versions[preferred_version({number: replicas_with[number] for number in usual})]
        if ref.version not in versions:
            there = ", ".join(map(str, sorted(versions)))
            raise NotFound(
                f'model "{name}" has no version {ref.version} available; there are: {there}', stage="routing"
            )
        return versions[ref.version]

    def resolve_routed(self, name: str, version: int) -> ModelVersion:
        """The version that a rollout has chosen; raises Unavailable if it cannot be reached now."""
        found = self.versions(name).get(version)
        if found is None:
            raise Unavailable(
                f'model "{name}" has no replica with version {version}, which serves, at the moment',
                stage="routing",
                retry_after_s=RETRY_AFTER_S,
            )
        return found

    async def labelled(self, ref: ModelRef, stable: int | None) -> ModelRef:
        """The version for which the label in `ref` stands: as the replicas say, else as the gateway does.

        The gateway's own labels are `stable` and `latest`.

        Args:
            ref: a model and a label.
            stable: the version that a rollout has for stable; None: that of requests that name none.

        Raises:
            NotFound: nobody knows the label; otherwise as `resolve` does.
            Unavailable: as `resolve` does.
        """
        routed = self.resolve(ModelRef(ref.name))
        version, expires = self._labels.get((routed.name, ref.label), (0, 0.0))
        if self._clock() >= expires or not self.is_there(routed.name, version):
            version = await self._ask_label(routed, ref.label, routed.version if stable is None else stable)
            self._labels[routed.name, ref.label] = version, self._clock() + LABEL_TTL_S
        return ModelRef(routed.name, version)

    async def _ask_label(self, routed: ModelVersion, label: str, stable: int) -> int:
        try:
            return await self._pool.call(
                routed.name,
                routed.version,
                lambda api, timeout_s: api.labelled(routed.name, label, timeout_s),
                deadline=self._clock() + LABEL_TIMEOUT_S,
            )
        except (InvalidInput, FailedPrecondition):
            if label == "stable":
                return stable
            if label == "latest":
                return max(self.versions(routed.name), default=routed.version)
            # Replicas cannot be asked which labels they have.
            raise NotFound(
                f'the replicas of model "{routed.name}" know no version label "{label[:100]}"; '
                "the gateway itself knows stable and latest",
                stage="routing",
                label=label,
            ) from None

    def missing(self) -> list[str]:
        """The models that have no version that can be served now."""
        return [name for name in self._known if not self.versions(name)]

    def can_serve(self) -> bool:
        """Whether requests should be sent here: each model has a version; later on, one of them still has.

        A gateway that starts must not take the place of another before it can do the same. But a model that
        loses its replicas must not take the others with it: all gateways see that, and none would be left.
        """
        missing = self.missing()
        return not missing or (self._was_complete and len(missing) < len(self._known))

    def report(self) -> list[ModelReport]:
        """Every model with what its replicas say of each version, for people to read.

        Of the versions that were unloaded, only the newest are included.
        """
        return [ModelReport(name, name == self.default_name(), self._shown(name)) for name in self._known]

    def _shown(self, name: str) -> list[VersionReport]:
        found = self.states(name)
        ended = [each for each in found if each.ended_well]
        old = {each.version for each in ended[:-_MOST_ENDED]}
        return [each for each in found if each.version not in old]

    def _out_of_reach(self, name: str) -> Unavailable:
        text = f'model "{name}" has no version that can be reached at the moment'
        return Unavailable(text, stage="routing", retry_after_s=RETRY_AFTER_S)

    def heard_states(self, name: str) -> list[VersionReport]:
        """Like `states`, but raises Unavailable if there are none because no replica can be reached."""
        found = self.states(name)
        if not found and not self._pool.reachable():
            raise self._out_of_reach(name)
        return found

    def states(self, name: str) -> list[VersionReport]:
        """What the replicas say of each version of the model `name`, by version."""
        statuses: dict[int, list[VersionStatus]] = {}
        for replica in self._pool.replicas:
            for number, status in replica.versions.get(name, {}).items():
                statuses.setdefault(number, []).append(status)
        return [_report(number, found) for number, found in sorted(statuses.items())]

    async def watch(self, interval_s: float) -> None:
        """Ask the replicas for ever: every `interval_s` seconds, and soon whenever `refreshed` is awaited."""
        async with self._learner:
            while True:
                self._wanted.clear()
                started = self._clock()
                waiters, self._waiters = self._waiters, []
                await self._refresh()
                self.asked = True
                for waiter in waiters:
                    if not waiter.done():
                        waiter.set_result(None)
                self._round_ended.set()
                self._round_ended = asyncio.Event()
                pause_s = min(interval_s, _MISSING_INTERVAL_S) if self.missing() else interval_s
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wanted.wait(), pause_s)
                    await asyncio.sleep(started + LEAST_INTERVAL_S - self._clock())

    async def refreshed(self) -> None:
        """Have `watch` ask the replicas again soon, and wait for that; callers share one round."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._wanted.set()
        await waiter

    async def ready(self) -> None:
        """Wait until every model has a version that can be served; `watch` must run."""
        while self.missing():
            await self._round_ended.wait()

    async def _refresh(self) -> None:
        """Ask the replicas what they have, and learn about versions that are new."""
        names = self.names()
        await self._pool.refresh(names)
        unknown = []
        for name in names:
            available = self._pool.availability(name)
            known = self._among(name, available)
            if name in self._known:  # the models may have changed while the replicas were asked
                self._known[name] = known
            complete = {number for number, each in known.items() if each.described}
            unknown += [VersionName(name, number) for number in sorted(available.keys() - complete)]
        await self._learner.learn(unknown, LEARN_PATIENCE_S)
        self._was_complete = self._was_complete or not self.missing()
        self._show(names)

    def _learned(self, version: ModelVersion) -> None:
        if version.name not in self._known:  # the models have changed meanwhile
            return
        before = self._known[version.name].get(version.version)
        self._known[version.name][version.version] = version
        if before is None:
            _log.info("a version is served", model=version.name, version=version.version)

    def _show(self, names: Iterable[str]) -> None:
        self._metrics.replica_up.clear()  # replicas that have left are not shown
        self._metrics.replica_calls_limit.clear()
        for replica in self._pool.replicas:
            self._metrics.replica_up.labels(replica.address).set(replica.reachable)
            self._metrics.replica_calls_limit.labels(replica.address).set(int(replica.room.limit))
        self._metrics.version_replicas.clear()
        present = []
        for name in names:
            present.append((name, ""))
            for number, count in self._pool.availability(name).items():
                present.append((name, str(number)))
                self._metrics.version_replicas.labels(name, str(number)).set(count)
        self._metrics.present(present, self._clock())


def _report(version: int, found: Sequence[VersionStatus]) -> VersionReport:
    failed = next((status for status in found if status.error), None)
    return VersionReport(
        version=version,
        state=max((status.state for status in found), key=_STATE_ORDER.index),
        available_on=sum(status.state == "AVAILABLE" for status in found),
        error=failed.error if failed else None,
        error_code=failed.error_code if failed else 0,
    )

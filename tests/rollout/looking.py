"""A controller that looks once at a time, over a store and counts that a test brings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from prometheus_client import CollectorRegistry

from serving.backends.pool import Pool
from serving.catalog import Catalog
from serving.errors import Unavailable
from serving.rollout.controller import Controller, Surroundings
from serving.rollout.counts import Counts
from serving.rollout.events import Announcer
from serving.rollout.machine import Phase, State
from serving.rollout.plan import Plan
from serving.rollout.reconcile import Reconciler, Wanted
from serving.rollout.record import Rollout
from serving.rollout.steering import Steering
from serving.rollout.store import FileStore, Store
from serving.telemetry.metrics import Metrics
from tests.rollout.stored import new_rollout


@dataclass
class Gateways:
    """What several gateways share: the calls of the candidate that they counted, and which of them leads."""

    calls: float = 0.0
    leader: str = "a"
    away: bool = False

    def publish(self, counts: dict[str, Counts]) -> None:
        """They are counted here already."""

    def collect(self, model: str) -> dict[str, Counts]:
        if self.away:
            raise Unavailable("away")
        return {"a": {"calls/2": self.calls, "calls/1": self.calls}}


@dataclass
class Lead:
    """The leadership as one of them sees it."""

    name: str
    gateways: Gateways

    def held(self) -> bool:
        return self.gateways.leader == self.name

    def release(self) -> None:
        """Nobody waits for it."""


class Telling(Announcer):
    """Notes the phases of the moves that it tells of."""

    def __init__(self, registry: CollectorRegistry, told: list[str]) -> None:
        super().__init__(registry)
        self._told = told

    async def moved(self, rollout: Rollout, number: int) -> None:
        await super().moved(rollout, number)
        self._told.append(rollout.events[number - 1].after.phase.value)


class Wanting(Reconciler):
    """Notes what it is to bring about."""

    wanted: Mapping[str, Wanted] = {}

    async def apply(self, wanted: Mapping[str, Wanted]) -> None:
        self.wanted = wanted


class Folder(FileStore):
    """A store for a folder of models that has versions 1 and 2 of each."""

    def published(self, model: str) -> list[int]:
        return [1, 2]


@dataclass
class Looking:
    """A controller without replicas over a store; every look moves its clock by a second."""

    store: Store
    gateways: Gateways
    name: str = "a"
    steering: Steering = field(default_factory=Steering)
    now: float = 1e9
    models: tuple[str, ...] = ("digits",)
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        registry = CollectorRegistry()
        pool = Pool([], calls_per_replica=1)
        self.reconciler = Wanting(pool, lambda model: f"/models/{model}")
        around = Surroundings(
            store=self.store,
            steering=self.steering,
            pool=pool,
            catalog=Catalog(pool, self.models, default_model=None, metrics=Metrics(registry)),
            reconciler=self.reconciler,
            leadership=Lead(self.name, self.gateways),
            source=self.gateways,
            announcer=Telling(registry, self.told),
            plan=Plan(on_new_version="rollout"),
        )
        self.controller = Controller(around, 1.0, wall=lambda: self.now, clock=lambda: self.now)

    async def look(self, calls: float = 0.0) -> None:
        """One look, after the candidate has had some calls."""
        self.gateways.calls += calls
        self.now += 1.0
        await self.controller.look()


def evidence(store: Store) -> float:
    """The candidate's calls that are evidence."""
    found = store.load("digits")
    assert found is not None
    return float(found.evidence.criteria["errors"].candidate_n)


def in_canary(store: Store) -> None:
    store.save(replace(new_rollout(), state=State(Phase.CANARY)))

"""Single looks of a controller: what it counts as evidence, and what it leaves alone."""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from serving.backends.pool import Pool
from serving.backends.tfserving import VersionStatus
from serving.catalog import Catalog
from serving.errors import InvalidInput, Unavailable
from serving.rollout.controller import Controller, Surroundings
from serving.rollout.counts import Counts
from serving.rollout.events import Announcer
from serving.rollout.explain import replay
from serving.rollout.fleet import Seen
from serving.rollout.known import KnownRollouts
from serving.rollout.machine import Phase, State
from serving.rollout.plan import Plan
from serving.rollout.reconcile import Reconciler, Wanted
from serving.rollout.record import Rollout
from serving.rollout.start import order
from serving.rollout.steering import Steering
from serving.rollout.store import Files, FileStore, Store
from serving.routing import Route, Split
from serving.telemetry.metrics import Metrics
from tests.rollout.stored import PLAN, new_rollout


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


class Failing(Gateways):
    """The candidate fails every other call."""

    def collect(self, model: str) -> dict[str, Counts]:
        return {"a": super().collect(model)["a"] | {"failed/2": self.calls / 2}}


THERE = VersionStatus("AVAILABLE")
HAVING_BOTH = [Seen("a", True, {1: THERE, 2: THERE})]


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


@pytest.mark.parametrize("follows", [True, False], ids=["it followed", "it stood still"])
async def test_calls_are_evidence_once_though_another_one_led_for_a_while(
    tmp_path: Path, follows: bool
) -> None:
    in_canary(Folder(tmp_path))
    gateways = Gateways()
    first, second = (Looking(Folder(tmp_path), gateways, name) for name in ("a", "b"))
    await first.look()
    await first.look(calls=10.0)
    gateways.leader = "b"
    await second.look()
    for _ in range(5):
        await second.look(calls=10.0)
        if follows:
            await first.look()
    gateways.leader = "a"
    await first.look()
    assert evidence(Folder(tmp_path)) == 60.0
    await first.look(calls=10.0)
    assert evidence(Folder(tmp_path)) == 70.0


class Name(str):
    """The name of a count; supports weak references, so that a test can see it being freed."""

    __slots__ = ("__weakref__",)


@dataclass
class Watched(Gateways):
    """Keeps track of which of the counts that it returned are still referenced."""

    given: list[weakref.ref[Name]] = field(default_factory=list)

    def collect(self, model: str) -> dict[str, Counts]:
        counts: Counts = {Name(name): number for name, number in super().collect(model)["a"].items()}
        self.given += [weakref.ref(name) for name in counts if isinstance(name, Name)]
        return {"a": counts}

    def held(self) -> int:
        return sum(each() is not None for each in self.given)


async def test_what_was_counted_is_held_no_longer_than_a_rollout_is_under_way(tmp_path: Path) -> None:
    store, gateways = FileStore(tmp_path), Watched()
    in_canary(store)
    looking = Looking(store, gateways)
    for _ in range(3):
        await looking.look(calls=10.0)
    assert gateways.held() == 2, "up to which the evidence goes"
    found = store.load("digits")
    assert found is not None
    store.save(found.moved(State(Phase.ROLLED_BACK), None, 1e9))
    await looking.look()
    assert gateways.held() == 0


async def test_of_a_models_rollouts_only_the_newest_is_known() -> None:
    known, first, second = KnownRollouts(), new_rollout("digits-2"), new_rollout("digits-3")
    known.of(first).told = known.of(new_rollout(model="flowers")).told = 7
    assert (known.of(first).told, known.of(second).told, known.of(first).told) == (7, 0, 0)
    assert known.of(new_rollout(model="flowers")).told == 7


class Unsynced(Files):
    """While it is `failing`, the newest state is renamed into place, and then told of as failed."""

    failing = False
    _renamed = ""

    def replace(self, source: Path, target: Path) -> None:
        super().replace(source, target)
        self._renamed = target.name

    def sync_folder(self, folder: Path) -> None:
        if self.failing and self._renamed == "digits.json":
            raise OSError(5, "Input/output error")
        super().sync_folder(folder)


async def test_calls_are_evidence_once_though_a_save_seemed_to_fail(tmp_path: Path) -> None:
    in_canary(Folder(tmp_path))
    files = Unsynced()
    looking = Looking(Folder(tmp_path, files), Gateways())
    await looking.look()
    await looking.look(calls=10.0)
    files.failing = True
    with pytest.raises(OSError, match="Input/output error"):
        await looking.look(calls=10.0)
    files.failing = False
    assert evidence(Folder(tmp_path)) == 20.0, "it is in place all the same"
    await looking.look()
    assert evidence(Folder(tmp_path)) == 20.0
    await looking.look(calls=10.0)
    assert evidence(Folder(tmp_path)) == 30.0


class Unwritable(Files):
    """Cannot write anything of one model."""

    def write(self, path: Path, content: bytes) -> None:
        if path.name.startswith("digits"):
            raise PermissionError(13, "Permission denied")
        super().write(path, content)


async def test_a_model_whose_record_cannot_be_written_holds_up_no_other(tmp_path: Path) -> None:
    models = ("digits", "flowers")
    for model in models:
        Folder(tmp_path).save(new_rollout(f"{model}-2", model))
    looking = Looking(Folder(tmp_path, Unwritable()), Gateways(), models=models)
    with pytest.raises(PermissionError):
        await looking.look()
    found = [Folder(tmp_path).load(model) for model in models]
    assert [each.revision for each in found if each is not None] == [1, 2]


class Disobedient(FileStore):
    """Cannot carry out a command that somebody left."""

    def obey(self) -> None:
        raise Unavailable("one of the objects cannot be written")


async def test_a_command_that_cannot_be_carried_out_holds_up_no_rollout(tmp_path: Path) -> None:
    store = Disobedient(tmp_path)
    store.save(new_rollout())
    with pytest.raises(Unavailable, match="one of the objects"):
        await Looking(store, Gateways()).look()
    found = store.load("digits")
    assert found is not None
    assert found.revision == 2


async def test_a_rollout_ages_by_the_time_in_which_it_was_watched(tmp_path: Path) -> None:
    store = Folder(tmp_path)
    in_canary(store)
    looking, ages = Looking(store, Gateways()), []
    for away_s in (0.0, 0.0, 3600.0, 0.0):
        looking.now += away_s
        await looking.look()
        found = store.load("digits")
        ages.append(None if found is None else found.clock_s)
    assert ages == [0.0, 1.0, 11.0, 12.0]


async def test_no_call_is_lost_while_the_counts_are_away(tmp_path: Path) -> None:
    in_canary(Folder(tmp_path))
    gateways = Gateways()
    looking = Looking(Folder(tmp_path), gateways)
    await looking.look()
    gateways.away = True
    for _ in range(3):
        await looking.look(calls=10.0)
    assert evidence(Folder(tmp_path)) == 0.0
    gateways.away = False
    await looking.look(calls=10.0)
    assert evidence(Folder(tmp_path)) == 40.0


async def test_a_command_costs_an_interval_at_most(tmp_path: Path) -> None:
    in_canary(Folder(tmp_path))
    looking = Looking(Folder(tmp_path), Gateways())
    await looking.look()
    await looking.look(calls=10.0)
    order(Folder(tmp_path), "digits", "pause", by="a test", at=1e9)
    await looking.look(calls=10.0)
    await looking.look(calls=10.0)
    assert evidence(Folder(tmp_path)) in (20.0, 30.0)


def stored(folder: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in folder.glob("*.json"))


def spoilt(folder: Path) -> None:
    """Damages what is stored of the model, and what was stored before."""
    for path in folder.glob("digits*.json"):
        path.write_text("{")


async def test_a_record_that_cannot_be_read_freezes_its_model(tmp_path: Path) -> None:
    store = Folder(tmp_path)
    in_canary(store)
    looking = Looking(store, Gateways())
    await looking.look()
    found = store.load("digits")
    assert found is not None
    assert looking.steering.splits() == {"digits": found.split()}
    spoilt(tmp_path)
    before = stored(tmp_path)
    for _ in range(3):
        await looking.look()
    assert looking.steering.splits() == {"digits": found.split()}, "it routes as it did"
    assert stored(tmp_path) == before, "nothing begins anew"
    assert store.pinned("digits") is None, "the newest version is not taken for one that is proven"


async def test_a_gateway_that_starts_on_a_record_that_cannot_be_read_takes_no_version_for_proven(
    tmp_path: Path,
) -> None:
    store = Folder(tmp_path)
    in_canary(store)
    spoilt(tmp_path)
    looking = Looking(store, Gateways())
    await looking.look()
    assert (looking.steering.splits(), store.pinned("digits")) == ({}, None)
    store.pin("digits", 1)
    await looking.look()
    assert looking.steering.splits() == {"digits": Split(1)}


@pytest.mark.parametrize("leader", ["a", "b"], ids=["it decides", "it follows"])
async def test_a_model_of_which_nobody_knows_what_serves_it_holds_up_no_other(
    tmp_path: Path, leader: str
) -> None:
    store, gateways = FileStore(tmp_path), Gateways(leader=leader)
    looking = Looking(store, gateways, models=("digits", "flowers"))
    store.save(new_rollout())
    store.pin("flowers", 3)
    (tmp_path / "pinned" / "flowers").write_text("three")
    with pytest.raises(InvalidInput, match="pinned/flowers holds no version"):
        await looking.look()
    order(store, "digits", "abort", by="a test", at=1e9)
    with pytest.raises(InvalidInput, match="pinned/flowers holds no version"):
        await looking.look()
    found = store.load("digits")
    assert found is not None
    assert (found.seen_at > 0.0) == (leader == "a")
    assert looking.steering.splits() == {"digits": found.split()}
    assert looking.told == (["rolling_back"] if leader == "a" else [])
    assert looking.reconciler.wanted == {}, "a config without flowers would have them unloaded"


async def test_a_plan_of_another_release_is_kept_and_nothing_grows_by_it(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    given = {"colour": "red", "criteria": {"latency": None}, "limits": {"blind_s": 10.0}}
    plan = Plan.of_record(PLAN.model_dump(mode="json") | given)
    store.save(replace(new_rollout(), plan=plan, state=State(Phase.CANARY)))
    looking = Looking(store, Gateways())
    looking.reconciler.seen = lambda model: HAVING_BOTH  # type: ignore[method-assign]
    for _ in range(10):
        await looking.look(calls=10.0)
    found = store.load("digits")
    assert found is not None
    assert (found.state.phase, found.state.step) == (Phase.CANARY, 0)
    assert evidence(store) == 90.0, "it goes on counting"
    for _ in range(2):
        await looking.look(calls=10.0)
    found = store.load("digits")
    assert found is not None
    assert (found.state.phase, found.state.reason.code) == (Phase.PAUSED, "plan.unknown")
    assert "does not know colour in the plan, and nothing grows" in found.state.reason.text
    assert found.split().weight == plan.canary[0].weight, "callers stay where they are"
    assert all(each.same for each in replay(found))
    order(store, "digits", "abort", by="a test", at=1e9)
    kept = json.loads((tmp_path / "digits.json").read_text())
    assert (kept["plan"], kept["state"]["phase"]) == (plan.to_json(), "rolling_back")


async def test_harm_rolls_back_by_a_plan_of_another_release_too(tmp_path: Path) -> None:
    store, gateways = FileStore(tmp_path), Failing()
    plan = Plan.of_record(PLAN.model_dump(mode="json") | {"colour": "red"})
    store.save(replace(new_rollout(), plan=plan, state=State(Phase.CANARY)))
    looking = Looking(store, gateways)
    looking.reconciler.seen = lambda model: HAVING_BOTH  # type: ignore[method-assign]
    for _ in range(10):
        await looking.look(calls=10.0)
    found = store.load("digits")
    assert found is not None
    assert (found.state.phase, found.state.reason.code) == (Phase.ROLLING_BACK, "errors.worse")


async def test_a_record_that_cannot_be_read_holds_up_no_other_model(tmp_path: Path) -> None:
    store, models = Folder(tmp_path), ("digits", "flowers")
    for model in models:
        store.save(replace(new_rollout(f"{model}-2", model), state=State(Phase.LOADING)))
    looking = Looking(store, Gateways(), models=models)
    await looking.look()
    spoilt(tmp_path)
    order(store, "flowers", "abort", by="a test", at=1e9)
    await looking.look()
    labels = {model: dict(each.labels) for model, each in looking.reconciler.wanted.items()}
    assert labels["digits"] == {"stable": 1, "candidate": 2}, "as it was"
    started = Looking(Folder(tmp_path), Gateways(), models=models)
    await started.look()
    assert started.reconciler.wanted == {}, "who knows nothing of one would have it unloaded"


async def test_what_replicas_held_before_another_gateway_led_is_not_brought_back(tmp_path: Path) -> None:
    store, gateways = Folder(tmp_path), Gateways()
    in_canary(store)
    looking = Looking(store, gateways)
    await looking.look()
    assert set(looking.reconciler.wanted) == {"digits"}
    gateways.leader = "b"
    await looking.look()
    spoilt(tmp_path)
    gateways.leader = "a"
    await looking.look()
    assert looking.reconciler.wanted == {}, "the other one may have promoted it"


async def test_a_move_is_told_of_though_the_gateway_that_made_it_ended(tmp_path: Path) -> None:
    store = Folder(tmp_path)
    store.save(new_rollout())
    order(store, "digits", "pause", by="a test", at=1e9)
    first = Looking(Folder(tmp_path), Gateways())
    for _ in range(2):
        await first.look()
    assert first.told == ["paused"], "that nobody looked when it was made"
    order(store, "digits", "abort", by="a test", at=1e9)
    second = Looking(Folder(tmp_path), Gateways())
    for _ in range(3):
        await second.look()
    assert second.told == ["rolling_back"]


async def test_a_move_that_is_told_of_twice_has_one_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Folder(tmp_path)
    store.save(new_rollout())
    order(store, "digits", "pause", by="a test", at=1e9)
    order(store, "digits", "abort", by="a test", at=1e9)
    for _ in range(2):  # the first one ends before it could note what it told
        await Looking(Folder(tmp_path), Gateways()).look()
    told = re.findall(r"a rollout moved .* move=(\d+) .* phase=(\w+)", capsys.readouterr().out)
    assert told == [("1", "paused"), ("2", "rolling_back")] * 2


@pytest.mark.parametrize("kept", [True, False], ids=["as it is", "as before this was kept"])
async def test_the_last_move_of_all_is_told_of_once(tmp_path: Path, kept: bool) -> None:
    over = new_rollout().moved(State(Phase.ROLLED_BACK), None, 1e9)
    Folder(tmp_path).save(over)
    path = tmp_path / "digits.json"
    if not kept:
        values = json.loads(path.read_text())
        del values["told"]
        path.write_text(json.dumps(values))
    told = []
    for _ in range(2):
        looking = Looking(Folder(tmp_path), Gateways(), models=())
        await looking.look()
        await looking.look()
        told += looking.told
    assert told == (["rolled_back"] if kept else [])


async def test_a_gateway_that_answers_says_what_is_slow_for_one_that_does_not(tmp_path: Path) -> None:
    store = Folder(tmp_path)
    store.save(replace(new_rollout(), state=State(Phase.SHADOW)))
    gateways = Gateways()
    leading, following = (Looking(Folder(tmp_path), gateways, name) for name in ("a", "b"))
    await leading.look()
    found = store.load("digits")
    assert found is not None
    assert found.latency_limit_s is None
    following.steering.set_split("digits", found.split(), None)
    for _ in range(100):
        following.steering.answered("digits", Route(1, "stable", None), 0.02, late=False)
    await following.look()
    await leading.look()
    found = store.load("digits")
    assert found is not None
    assert found.latency_limit_s == pytest.approx(0.02)

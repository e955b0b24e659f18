"""What a controller does about records and pins that are damaged, or from another release of Sluice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from serving.backends.tfserving import VersionStatus
from serving.errors import InvalidInput
from serving.rollout.counts import Counts
from serving.rollout.explain import replay
from serving.rollout.fleet import Seen
from serving.rollout.machine import Phase, State
from serving.rollout.plan import Plan
from serving.rollout.start import order
from serving.rollout.store import FileStore
from serving.routing import Split
from tests.rollout.looking import Folder, Gateways, Looking, evidence, in_canary
from tests.rollout.stored import PLAN, new_rollout

THERE = VersionStatus("AVAILABLE")
HAVING_BOTH = [Seen("a", True, {1: THERE, 2: THERE})]


class Failing(Gateways):
    """The candidate fails every other call."""

    def collect(self, model: str) -> dict[str, Counts]:
        return {"a": super().collect(model)["a"] | {"failed/2": self.calls / 2}}


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

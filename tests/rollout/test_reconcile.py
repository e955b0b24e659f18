"""What replicas are told of the versions that they should hold: when, how often, and under which labels."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest

from serving.backends.pool import Pool
from serving.backends.replica import Replica
from serving.backends.tfserving import TensorFlowServing, VersionStatus
from serving.errors import InvalidInput
from serving.rollout import reconcile
from serving.rollout.reconcile import Reconciler, Wanted

LABELS = {"stable": 1, "candidate": 2}


class Taking:
    """A replica's API, of which only the config is asked; it notes each, and may fail or hang."""

    def __init__(self, address: str = "a") -> None:
        self.address = address
        self.told: list[Any] = []
        self.error: Exception | None = None
        self.lets_go = asyncio.Event()
        self.lets_go.set()

    async def reload_config(self, config: Any, timeout_s: float) -> None:
        self.told.append(config)
        if self.error is not None:
            raise self.error
        await self.lets_go.wait()


class Scene:
    """A reconciler of some replicas, all reachable, on a clock that tests set."""

    def __init__(self, *apis: Taking, on_config: Callable[[Any], None] | None = None) -> None:
        self.apis = apis
        self.now = 1000.0
        self.replicas = [Replica(cast("TensorFlowServing", api)) for api in apis]
        for replica in self.replicas:
            replica.reachable = True
        self.pool = Pool(self.replicas, calls_per_replica=1)
        self.reconciler = Reconciler(self.pool, lambda model: f"/models/{model}", on_config, lambda: self.now)

    def has(self, *there: int, state: str = "AVAILABLE", error: str = "") -> None:
        """Every replica has these versions, in this state, and no others."""
        for replica in self.replicas:
            replica.versions = {"digits": {each: VersionStatus(state, error) for each in there}}

    async def apply(self, *versions: int, labels: Mapping[str, int] = LABELS) -> None:
        """Have every replica hold these versions."""
        held = {api.address: frozenset(versions) for api in self.apis}
        await self.reconciler.apply({"digits": Wanted(held, labels)})

    def times(self) -> list[int]:
        """How often each replica has been told something."""
        return [len(api.told) for api in self.apis]


def versions_of(config: Any) -> list[int]:
    (entry,) = config.model_config_list.config
    return list(entry.model_version_policy.specific.versions)


def labels_of(config: Any) -> dict[str, int]:
    (entry,) = config.model_config_list.config
    return dict(entry.version_labels)


async def test_a_replica_is_told_once_and_again_when_something_else_is_wanted() -> None:
    scene = Scene(Taking())
    scene.has(1)
    for _ in range(3):
        await scene.apply(1)
    assert scene.times() == [1]
    assert scene.apis[0].told[0].model_config_list.config[0].base_path == "/models/digits"
    await scene.apply(2, 1)
    assert scene.times() == [2]
    assert versions_of(scene.apis[0].told[1]) == [1, 2]


async def test_labels_point_at_versions_that_are_there_and_are_to_stay() -> None:
    scene = Scene(Taking())
    scene.has(1)
    await scene.apply(1, 2)
    scene.has(1, 2)
    await scene.apply(1, 2)
    scene.has(1, 2)
    await scene.apply(2)
    assert [labels_of(config) for config in scene.apis[0].told] == [{"stable": 1}, LABELS, {"candidate": 2}]


@pytest.mark.parametrize(
    ("there", "state", "error", "follows"),
    [
        ((1, 2), "AVAILABLE", "", True),
        ((1, 2), "LOADING", "", True),
        ((1, 2), "START", "", True),
        ((1, 2), "END", "cannot be loaded", True),
        ((1, 2), "END", "", False),
        ((1, 2), "UNLOADING", "", False),
        ((1,), "AVAILABLE", "", False),
        ((1, 2, 3), "AVAILABLE", "", False),
        ((1, 2, 3), "LOADING", "", True),
    ],
)
async def test_one_whose_states_do_not_follow_is_told_again_after_a_while(
    there: tuple[int, ...], state: str, error: str, follows: bool
) -> None:
    scene = Scene(Taking())
    scene.has(*there, state=state, error=error)
    await scene.apply(1, 2, labels={})
    scene.now += 2.9
    await scene.apply(1, 2, labels={})
    assert scene.times() == [1]
    scene.now += 0.2
    await scene.apply(1, 2, labels={})
    assert scene.times() == [1 if follows else 2]


async def test_one_that_failed_or_was_away_is_told_at_the_next_look() -> None:
    scene = Scene(Taking("a"), Taking("b"))
    scene.has(1)
    scene.apis[0].error = InvalidInput("no such folder")
    await scene.apply(1)
    scene.apis[0].error = None
    scene.replicas[1].reachable = False
    await scene.apply(1)
    assert scene.times() == [2, 1]
    scene.replicas[1].reachable = True
    await scene.apply(1)
    assert scene.times() == [2, 2], "it may have been started again meanwhile"


async def test_one_that_hangs_is_waited_for_no_longer_than_a_look_and_told_nothing_beside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reconcile, "_PATIENCE_S", 0.01)
    scene = Scene(Taking("a"), Taking("b"))
    scene.has(1)
    scene.apis[0].lets_go.clear()
    async with asyncio.timeout(20):
        await scene.apply(1)
        await scene.apply(1, 2)
    assert scene.times() == [1, 2]
    scene.apis[0].lets_go.set()
    while scene.times() == [1, 2]:
        await asyncio.sleep(0)
        await scene.apply(1, 2)
    assert versions_of(scene.apis[0].told[1]) == [1, 2]
    scene.apis[0].lets_go.clear()
    await scene.apply(1)
    async with asyncio.timeout(20):
        await scene.reconciler.close()


async def test_a_replica_that_is_new_gets_what_others_hold_and_one_that_starts_a_config_without_labels() -> (
    None
):
    configs: list[Any] = []
    scene = Scene(Taking("a"), on_config=configs.append)
    scene.has(1)
    await scene.reconciler.apply({"digits": Wanted({"other": frozenset((1, 2))}, LABELS)})
    assert versions_of(scene.apis[0].told[0]) == versions_of(configs[0]) == [1, 2]
    assert (labels_of(scene.apis[0].told[0]), labels_of(configs[0])) == ({"stable": 1}, {})
    await scene.reconciler.apply({})
    assert (scene.times(), len(configs)) == ([1], 1), "of nothing wanted nothing is told"


async def test_what_nobody_foresaw_ends_the_look() -> None:
    scene = Scene(Taking())
    scene.has(1)
    scene.apis[0].error = ZeroDivisionError("a fault of ours")
    with pytest.raises(ZeroDivisionError):
        await scene.apply(1)


async def test_what_one_was_told_that_left_is_forgotten() -> None:
    """When its address comes back, it may belong to another replica."""
    scene = Scene(Taking("a"), Taking("b"))
    scene.has(1)
    pool, left = scene.pool, scene.replicas[1]
    await scene.apply(1)
    pool.leave("b")
    await scene.apply(1)
    assert scene.times() == [1, 1]
    pool.join(left)
    await scene.apply(1)
    assert scene.times() == [1, 2]

"""Whole rollouts over scripted replicas: real sockets, real stores, callers that ask all the while."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import grpc
import pytest

from serving.rollout.examine import Examiner
from serving.rollout.explain import explain, replay
from serving.rollout.machine import Phase
from serving.rollout.verdict import Outcome
from tests.rollout.replicas import FAST, VersionedReplica, scene_over
from tests.support.fake_replica import Refusal


async def failing() -> None:
    raise Refusal(grpc.StatusCode.INTERNAL, "the model failed")


class EveryTenth:
    """Fails at every tenth call."""

    def __init__(self) -> None:
        self._calls = 0

    async def __call__(self) -> None:
        self._calls += 1
        if self._calls % 10 == 0:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "assertion failed")


async def slow() -> None:
    await asyncio.sleep(0.4)


async def test_a_good_version_is_promoted_under_load_without_a_failed_request(tmp_path: Path) -> None:
    replicas = [VersionedReplica(), VersionedReplica()]
    async with scene_over(tmp_path, *replicas) as scene:
        scene.begin()
        rollout = await scene.until_finished()
        assert rollout.state.phase is Phase.PROMOTED, rollout.state.reason
        async with asyncio.timeout(60):
            while any(replica.labels != {"stable": 2} for replica in replicas):
                await asyncio.sleep(0.01)
        assert [event.after.phase for event in rollout.events] == [
            Phase.LOADING,
            Phase.PREFLIGHT,
            Phase.SHADOW,
            Phase.CANARY,
            Phase.CANARY,
            Phase.PROMOTING,
            Phase.PROMOTED,
        ]
        assert {status for status, _ in scene.answered} == {200}
        assert {version for _, version in scene.answered} == {1, 2}
    for replica in replicas:
        assert replica.configs[0] == [1]
        assert [1, 2] in replica.configs
        assert replica.configs[-1] == [2]
    assert all(each.same for each in replay(rollout))
    assert any("agreement" in line or "agrees" in line for line in explain(rollout))


async def test_a_candidate_is_not_examined_before_it_can_say_its_labels(tmp_path: Path) -> None:
    replica = VersionedReplica(speechless={2})
    async with scene_over(tmp_path, replica) as scene:
        rollout, catalog = scene.begin(), scene.running.catalog
        async with asyncio.timeout(60):
            while 2 not in catalog.versions("digits"):
                await asyncio.sleep(0.01)
        await scene.reached(Phase.PREFLIGHT)
        verdict = await Examiner(scene.running.gateway.pool, catalog).examine(rollout)
        assert verdict.outcome is Outcome.WAIT
        assert verdict.reasons[0].text == (
            "version 2 could not be asked for its labels yet: its describe fails"
        )
        replica.speechless.clear()
        assert (await scene.until_finished()).state.phase is Phase.PROMOTED
    assert {status for status, _ in scene.answered} == {200}


async def test_a_self_test_that_hangs_holds_up_no_command(tmp_path: Path) -> None:
    asked = asyncio.Event()

    async def hang() -> None:
        asked.set()
        await asyncio.Event().wait()

    async with scene_over(tmp_path, VersionedReplica(before_self_test=hang)) as scene:
        scene.begin()
        async with asyncio.timeout(60):
            await asked.wait()
        await scene.ordered("abort")
        rollout = await scene.until_finished(timeout_s=20.0)
    assert [event.after.phase for event in rollout.events][1:] == [
        Phase.PREFLIGHT,
        Phase.ROLLING_BACK,
        Phase.ROLLED_BACK,
    ]


@pytest.mark.parametrize(
    ("harm", "code"),
    [
        ("permuted", "agreement.below"),
        ("one class", "agreement.class-below"),
        ("every tenth", "errors.worse"),
        ("slow", "latency.worse"),
        ("self-test", "preflight.self-test"),
        ("self-test without a number", "preflight.self-test"),
        ("labels", "preflight.labels"),
        ("does not load", "replicas.cannot-load"),
    ],
)
async def test_a_broken_version_is_rolled_back_for_the_right_reason(
    tmp_path: Path, harm: str, code: str
) -> None:
    replica = VersionedReplica()
    if harm == "permuted":
        replica.answers[2] = lambda index: (index + 1) % 10
    if harm == "one class":
        # Of ten equally frequent classes one is broken: nine tenths agree, which is the least overall.
        replica.answers[2] = lambda index: {3: 4, 4: 3}.get(index, index)
    if harm == "every tenth":
        replica.behaviour[2] = EveryTenth()
    if harm == "slow":
        replica.behaviour[2] = slow
    replica.self_test_off[2] = {"self-test": 0.3, "self-test without a number": math.nan}.get(harm, 0.0)
    if harm == "labels":
        replica.relabelled.add(2)
    if harm == "does not load":
        replica.broken.add(2)
    shadow = {"min_agreement": 0.5, "min_samples": 400} if harm == "one class" else {}
    plan = FAST | {"shadow": FAST["shadow"] | shadow}
    # With a place for every caller, a slow candidate cannot make the stable version wait and look slow, too.
    async with scene_over(tmp_path, replica, calls_per_replica=8) as scene:
        scene.begin(plan)
        rollout = await scene.until_finished()
        assert (rollout.state.phase, rollout.state.reason.code) == (Phase.ROLLED_BACK, code), (
            rollout.state.reason
        )
        seen = len(scene.answered)
        async with asyncio.timeout(60):
            while len(scene.answered) < seen + 40:
                await asyncio.sleep(0.01)
        assert {version for _, version in scene.answered[seen + 4 :]} == {1}
    assert replica.configs[-1] == [1]
    assert all(each.same for each in replay(rollout))
    if harm not in ("every tenth", "slow"):
        assert {version for _, version in scene.answered} == {1}, "it never answered anyone"

"""What goes wrong while a rollout is under way: it ends as it would have, or says why not."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.errors import Conflict
from serving.rollout.machine import Phase
from serving.rollout.start import order
from serving.routing import Split
from tests.rollout.replicas import FAST, PICTURES, VersionedReplica, scene_over
from tests.support.fake_replica import FakeReplica, running, until
from tests.support.gateways import gateway_over

CLASSIFY = "/v1/models/digits:classify"
WAY = [
    Phase.LOADING,
    Phase.PREFLIGHT,
    Phase.SHADOW,
    Phase.CANARY,
    Phase.CANARY,
    Phase.PROMOTING,
    Phase.PROMOTED,
]


async def test_replicas_that_all_start_again_get_both_versions_back(tmp_path: Path) -> None:
    replicas = [VersionedReplica(), VersionedReplica()]
    async with scene_over(tmp_path, *replicas) as scene:
        scene.begin()
        await scene.reached(Phase.CANARY)
        for each in replicas:
            # As after a restart: what the file on its disk names.
            each.versions = {"digits": {1}}
        rollout = await scene.until_finished()
        assert rollout.state.phase is Phase.PROMOTED, rollout.state.reason
        assert {status for status, _ in scene.answered} == {200}


async def test_a_candidate_that_is_deleted_from_disk_is_rolled_back(tmp_path: Path) -> None:
    replica = VersionedReplica()
    async with scene_over(tmp_path, replica) as scene:
        scene.begin(FAST | {"canary": [{"weight": 0.5, "min_time_s": 1000}]})
        await scene.reached(Phase.CANARY)
        replica.broken.add(2)
        replica.versions = {"digits": {1}}
        rollout = await scene.until_finished()
        assert (rollout.state.phase, rollout.state.reason.code) == (Phase.ROLLED_BACK, "replicas.cannot-load")
        assert {status for status, _ in scene.answered} == {200}


class Hanging(VersionedReplica):
    """Never answers that it has taken a config with two versions."""

    async def reload(self, request: Any) -> Any:
        (entry,) = request.config.model_config_list.config
        if len(entry.model_version_policy.specific.versions) > 1:
            await asyncio.Event().wait()
        return await super().reload(request)


async def test_a_replica_that_hangs_as_it_is_told_its_versions_holds_up_no_other(tmp_path: Path) -> None:
    async with scene_over(tmp_path, Hanging(), VersionedReplica()) as scene:
        scene.begin()
        await scene.reached(Phase.CANARY, timeout_s=30.0)
        await scene.ordered("abort")
        rollout = await scene.until_finished(timeout_s=30.0)
        assert rollout.state.phase is Phase.ROLLED_BACK
        assert {status for status, _ in scene.answered} == {200}


async def test_three_gateways_make_one_decision_and_route_alike(tmp_path: Path) -> None:
    replica = VersionedReplica()
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(scene_over(tmp_path, replica, callers=2))
        others = [
            await stack.enter_async_context(scene_over(tmp_path, over=first.replicas, callers=2))
            for _ in range(2)
        ]
        gateways = [first.running.gateway, *(each.running.gateway for each in others)]
        first.begin()
        async with asyncio.timeout(100):
            while not first.rollout.finished:
                await asyncio.sleep(0.05)
                weight = first.rollout.split().weight
                async with asyncio.timeout(60):
                    while not first.rollout.finished and any(
                        each.steering.splits()["digits"].weight != first.rollout.split().weight
                        for each in gateways
                    ):
                        await asyncio.sleep(0.01)
                assert weight <= 1.0
        rollout = first.rollout
        assert rollout.state.phase is Phase.PROMOTED, rollout.state.reason
        assert [event.after.phase for event in rollout.events] == WAY
        answered = [status for each in (first, *others) for status, _ in each.answered]
        assert set(answered) == {200}
        counted = float(rollout.evidence.criteria["latency"].stable_n)
        assert counted > max(len(each.answered) for each in (first, *others)) / 2, "all three are counted"


async def test_a_version_that_is_not_there_says_which_are(tmp_path: Path) -> None:
    replica = VersionedReplica()
    async with scene_over(tmp_path, replica) as scene:
        scene.begin(FAST | {"limits": {"load_s": 0.5}}, to=7)
        rollout = await scene.until_finished()
        assert (rollout.state.phase, rollout.state.reason.code) == (Phase.ROLLED_BACK, "loading.timeout")


async def test_commands_reach_a_running_rollout(tmp_path: Path) -> None:
    replica = VersionedReplica()
    async with scene_over(tmp_path, replica) as scene:
        scene.begin(FAST | {"canary": [{"weight": 0.5, "min_time_s": 1000}]})
        await scene.reached(Phase.CANARY)
        paused = await asyncio.to_thread(order, scene.store, "digits", "pause", by="a test", at=2e9)
        assert paused.state.phase is Phase.PAUSED
        await asyncio.to_thread(order, scene.store, "digits", "resume", by="a test", at=2e9)
        await asyncio.to_thread(order, scene.store, "digits", "promote", by="a test", at=2e9)
        rollout = await scene.until_finished()
        assert rollout.state.phase is Phase.PROMOTED
        assert [event.outcome for event in rollout.events].count("command") == 3


async def test_clocks_that_jump_make_no_rollout_older(tmp_path: Path) -> None:
    replica = VersionedReplica()
    async with scene_over(tmp_path, replica) as scene:
        scene.begin(FAST | {"canary": [{"weight": 0.5, "min_time_s": 1000}]})
        await scene.reached(Phase.CANARY)
        async with asyncio.timeout(60):
            for jump_s in (-1e6, 1e6):
                before = scene.rollout
                while True:
                    try:
                        jumped = scene.store.save(replace(scene.rollout, seen_at=before.seen_at + jump_s))
                        break
                    except Conflict:
                        await asyncio.sleep(0)
                while scene.rollout.revision <= jumped.revision:
                    await asyncio.sleep(0.01)
                assert 0.0 <= scene.rollout.clock_s - before.clock_s < 10.0
                assert not scene.rollout.finished


async def answer_by(client: httpx.AsyncClient) -> tuple[int, int]:
    """The status of one request that names no version, and the version that answered it."""
    answer = await client.post(CLASSIFY, content=PICTURES[1], headers={"content-type": "image/png"})
    return answer.status_code, answer.json().get("version", 0)


@pytest.mark.parametrize(("weight", "chosen", "other"), [(0.0, 1, 2), (1.0, 2, 1)])
async def test_while_no_replica_has_the_version_of_a_route_the_other_one_answers(
    weight: float, chosen: int, other: int
) -> None:
    # Stable without replicas, and no weight left: a promotion that was aborted once stable had been unloaded.
    replica = FakeReplica(versions={"digits": {other}})
    async with running(replica), gateway_over(replica) as (gateway, client):
        gateway.gateway.steering.set_split("digits", Split(1, 2, weight, salt="x"), None)
        assert await answer_by(client) == (200, other)
        counts = gateway.gateway.steering.counts("digits")
        assert not {f"{kind}/{version}" for kind in ("requests", "calls") for version in (1, 2)} & set(counts)
        replica.versions = {"digits": {1, 2}}
        await until(lambda: set(gateway.catalog.versions("digits")) == {1, 2})
        assert await answer_by(client) == (200, chosen)
        replica.versions = {"digits": {3}}
        await until(lambda: set(gateway.catalog.versions("digits")) == {3})
        assert await answer_by(client) == (503, 0), "a version that is no part of the rollout"

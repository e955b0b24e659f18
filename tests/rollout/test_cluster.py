"""Whole rollouts over the Kubernetes store: conflicts, dropped watches and 410 in between, one decision."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import pytest
import yaml

from k8s.tools.check import K8S
from serving.errors import InvalidInput
from serving.main import new_metrics
from serving.rollout.assembly import shared_by
from serving.rollout.explain import replay
from serving.rollout.machine import Phase
from serving.rollout.steering import Steering
from serving.settings import Settings
from tests.rollout.api_server import ApiServer, api_server
from tests.rollout.cluster import NAMESPACE, ClusterScene, Scraper, cluster_scene, kubeconfig, scraping
from tests.rollout.replicas import FAST, VersionedReplica
from tests.support.beside import beside
from tests.support.fake_replica import Refusal, running, until
from tests.support.gateways import counted

# Where everything shares one process, latency says nothing.
pytestmark = pytest.mark.timeout(600)  # three gateways, an API server and Prometheus in one process

PLAN = FAST | {"criteria": FAST["criteria"] | {"latency": None}}
WAY = ["loading", "preflight", "shadow", "canary", "canary", "promoting", "promoted"]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    with api_server() as state:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, state)))
        yield state


@pytest.fixture
def prometheus() -> Iterator[Scraper]:
    with scraping() as found:
        yield found


@asynccontextmanager
async def disturbed(server: ApiServer) -> AsyncIterator[None]:
    """Watches drop, the past is forgotten, and others write to the objects first, again and again."""

    async def disturb() -> None:
        while True:
            # One look in about five meets somebody who wrote first: who is always overtaken never moves.
            server.overtake = True
            for disturb in (server.drop_watches, server.forget_events):
                await asyncio.sleep(0.7)
                disturb()

    async with beside(disturb()):
        yield


async def alike_soon(first: ClusterScene, scenes: list[ClusterScene]) -> None:
    """Every gateway routes by what is stored, soon after it was stored."""
    while not first.rollout.finished:
        async with asyncio.timeout(60):
            while True:
                split = first.rollout.split()
                found = [each.running.gateway.steering.splits()["digits"] for each in scenes]
                if all(each == split for each in found):
                    break
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.02)


async def test_three_gateways_of_a_cluster_make_one_decision_though_the_leader_leaves(
    server: ApiServer, prometheus: Scraper
) -> None:
    replica = VersionedReplica()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(running(replica))
        leading = await stack.enter_async_context(AsyncExitStack())
        leader = await leading.enter_async_context(cluster_scene(server, prometheus, over=[replica]))
        first, third = [
            await stack.enter_async_context(cluster_scene(server, prometheus, over=[replica]))
            for _ in range(2)
        ]
        await stack.enter_async_context(disturbed(server))
        first.begin(PLAN)
        stay = [first, third]
        alike = asyncio.create_task(alike_soon(first, stay))
        await first.reached(Phase.SHADOW)
        # Of the last one perhaps without having stored that it did: then another one tells of it again.
        await until(lambda: counted(leader.running, "sluice_rollout_moves_total") >= 3)
        await leading.aclose()
        rollout = await first.until_finished()
        await alike

        def moves() -> list[float]:
            return [counted(each.running, "sluice_rollout_moves_total") for each in (leader, *stay)]

        await until(lambda: first.rollout.told == len(WAY))
    assert rollout.state.phase is Phase.PROMOTED, rollout.state.reason
    assert [event.after.phase.value for event in rollout.events] == WAY
    assert all(each.same for each in replay(rollout))
    by_leader, *by_others = moves()
    assert by_leader >= 3
    assert min(by_others) == 0, "another one went on, alone"
    assert by_leader + max(by_others) - len(WAY) in (0, 1), "each move is told of, one twice at most"
    assert {status for scene in stay for status, _ in scene.answered} == {200}
    assert (server.conflicts > 0, server.gone > 0, server.watches > 10) == (True, True, True)
    assert replica.configs[-1] == [2]
    status = server.get("modelrollouts", rollout.id)["status"]
    assert (status["phase"], status["stableVersion"]) == ("promoted", 2)


async def failing() -> None:
    raise Refusal(grpc.StatusCode.INTERNAL, "the model failed")


async def test_a_broken_version_is_rolled_back_in_a_disturbed_cluster(
    server: ApiServer, prometheus: Scraper
) -> None:
    replica = VersionedReplica(behaviour={2: failing})
    async with cluster_scene(server, prometheus, replica, callers=4) as scene, disturbed(server):
        scene.begin(PLAN | {"shadow": {"share": 0.0}})
        rollout = await scene.until_finished()
        assert (rollout.state.phase, rollout.state.reason.code) == (Phase.ROLLED_BACK, "errors.worse")
        seen = len(scene.answered)
        await until(lambda: len(scene.answered) > seen + 20)
        assert {version for _, version in scene.answered[seen + 2 :]} == {1}
    assert all(each.same for each in replay(rollout))
    assert replica.configs[-1] == [1]
    assert server.conflicts > 0


async def test_a_deleted_rollout_under_way_leaves_its_stable_version_at_gateways_that_came_later(
    server: ApiServer, prometheus: Scraper
) -> None:
    replica = VersionedReplica()
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(cluster_scene(server, prometheus, replica))
        first.begin(PLAN | {"canary": [{"weight": 0.5, "min_time_s": 1000}]})
        await first.reached(Phase.CANARY)
        late = await stack.enter_async_context(cluster_scene(server, prometheus, over=[replica]))
        server.delete("modelrollouts", first.rollout.id)
        await until(lambda: late.running.gateway.steering.splits()["digits"].candidate is None)
        answered = len(late.answered)
        await until(lambda: len(late.answered) > answered + 20)
        assert {version for _, version in late.answered[answered + 2 :]} == {1}
        await until(lambda: replica.configs[-1] == [1])


@pytest.mark.parametrize("fault", ["away", "astray"])
async def test_nothing_is_promoted_blind_and_a_deleted_object_undoes_nothing(
    server: ApiServer, prometheus: Scraper, fault: str
) -> None:
    replica = VersionedReplica()
    async with cluster_scene(server, prometheus, replica, callers=4) as scene:
        scene.begin(PLAN | {"limits": FAST["limits"] | {"blind_s": 0.3}})
        await scene.reached(Phase.CANARY)
        setattr(prometheus, fault, True)
        await scene.reached(Phase.PAUSED)
        assert scene.rollout.state.reason.code == "counts.missing"
        setattr(prometheus, fault, False)
        server.patch("modelrollouts", scene.rollout.id, {"spec": {"command": "resume"}})
        rollout = await scene.until_finished()
        assert rollout.state.phase is Phase.PROMOTED
        server.delete("modelrollouts", rollout.id)
        seen, answered = len(replica.configs), len(scene.answered)
        await until(lambda: len(scene.answered) > answered + 40)
        assert {version for _, version in scene.answered[answered + 2 :]} == {2}
        assert all(config == [2] for config in replica.configs[seen:])


async def test_a_gateway_may_do_what_it_does_and_nothing_else(server: ApiServer, prometheus: Scraper) -> None:
    async with cluster_scene(server, prometheus, VersionedReplica(), callers=4) as scene:
        scene.begin(PLAN | {"canary": [{"weight": 0.5, "min_time_s": 1000}]})
        await scene.reached(Phase.CANARY)
        server.patch("modelrollouts", scene.rollout.id, {"spec": {"command": "promote"}})
        assert (await scene.until_finished()).state.phase is Phase.PROMOTED
    documents = yaml.safe_load_all((K8S / "components/rollouts-cluster/rbac.yaml").read_text())
    (role,) = [each for each in documents if each["kind"] == "Role"]
    may = {
        (resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]
    }
    assert may == server.asked


def test_a_key_that_could_be_guessed_is_refused(server: ApiServer, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"")
    loaded = Settings(rollout_namespace=NAMESPACE, prometheus_url=server.url, feedback_key_file=key)
    told = "key holds 0 bytes; what signs prediction ids is 32 random ones"
    with pytest.raises(InvalidInput, match=told), shared_by(loaded, Steering(), new_metrics(), tmp_path):
        pytest.fail("anybody could sign ids")
    key.write_bytes(bytes(32))
    with shared_by(loaded, Steering(), new_metrics(), tmp_path) as shared:
        assert shared.receipts.issue("digits", 1, "7", routed=False)

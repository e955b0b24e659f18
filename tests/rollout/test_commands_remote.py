"""`sluice rollout …` where the rollouts are: in a folder, at a gateway elsewhere, in a cluster."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner, Result

from serving import settings
from serving.commands.rollout import _followed, rollout
from serving.errors import InvalidInput, SluiceError
from serving.rollout import assembly
from serving.rollout.access import GatewayAccess, StoreAccess, _models, open_store
from serving.rollout.machine import Phase, State
from serving.rollout.steering import Steering
from serving.rollout.store import FileStore
from serving.rollout.verdict import Outcome, Reason, Verdict
from serving.telemetry.metrics import Metrics
from tests.rollout.api_server import api_server
from tests.rollout.cluster import cluster_scene, kubeconfig, scraping
from tests.rollout.replicas import FAST, Scene, VersionedReplica, scene_over
from tests.rollout.stored import new_rollout
from tests.rollout.test_admin import keys_file
from tests.support.processes import COMMAND

HELD = FAST | {"canary": [{"weight": 0.5, "min_time_s": 1000}]}


async def sluice(where: list[str], *arguments: str, **environment: str) -> Result:
    """Runs `sluice rollout`, in a thread: what it talks to is in this process."""
    invoke = CliRunner(env={"COLUMNS": "200"} | environment).invoke
    result = await asyncio.to_thread(invoke, rollout, [*arguments, *where])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


async def watched(where: list[str]) -> tuple[int, str]:
    """`sluice rollout watch`, in a process of its own: its exit code, and all that it showed."""
    command = [*COMMAND, "rollout", "watch", "digits", *where]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


async def through_its_life(scene: Scene, where: list[str], plan: Path) -> None:
    """A rollout that is started, watched, paused, resumed and aborted by commands."""
    started = await sluice(where, "start", "digits", "--to", "2", "--plan", str(plan))
    assert (started.exit_code, started.stderr) == (0, "")
    await scene.reached(Phase.CANARY)
    id_ = scene.rollout.id
    assert (
        f"{id_}: digits → 2; follow it: sluice rollout watch digits {where[0]} {where[1]}" in started.stdout
    )
    twice = await sluice(where, "start", "digits", "--to", "3")
    assert (twice.exit_code, "is canary: abort it, or wait for its end" in twice.stderr) == (1, True)
    watching = asyncio.create_task(watched(where))
    assert f"{id_}: paused\n" in (await sluice(where, "pause", "digits")).stdout
    status = (await sluice(where, "status", "--json")).stdout.splitlines()
    (told,) = json.loads(next(line for line in status if line.startswith("[{")))
    assert (told["id"], told["state"]["phase"]) == (id_, "paused")
    assert f"{id_}: canary\n" in (await sluice(where, "resume", "digits")).stdout
    nonsense = await sluice(where, "resume", "digits")
    assert (nonsense.exit_code, "is canary, not paused" in nonsense.stderr) == (1, True)
    assert "50% stable, 50% candidate" in (await sluice(where, "status", "digits")).stdout
    assert f"{id_}: roll" in (await sluice(where, "abort", "digits")).stdout
    assert (await scene.until_finished()).state.phase is Phase.ROLLED_BACK
    code, seen = await watching
    assert (code, "rolled back" in seen) == (1, True)
    assert [line for line in seen.splitlines() if line.startswith(f"{id_}: rolled_back: abort was requested")]
    await told_afterwards(where, id_)


async def told_afterwards(where: list[str], id_: str) -> None:
    """What commands say of a rollout that was aborted."""
    past = (await sluice(where, "history", "digits")).stdout
    assert f"{id_}  1 → 2  rolled_back: abort was requested by" in past
    story = (await sluice(where, "explain", "digits", "--id", id_)).stdout
    assert "because agrees with stable on" in story
    replayed = await sluice(where, "replay", "digits", "--id", id_)
    assert (replayed.exit_code, "OTHERWISE" in replayed.stdout) == (0, False)
    missing = await sluice(where, "explain", "digits", "--id", "none")
    assert (missing.exit_code, f"there are: {id_}" in missing.stderr) == (1, True)
    unknown = await sluice(where, "status", "flowers")
    assert (unknown.exit_code, "there are: digits" in unknown.stderr) == (1, True)


def test_a_watched_rollout_is_followed_to_its_own_end(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    first = store.save(new_rollout())
    last = store.save(replace(first, state=State(Phase.ROLLED_BACK)))
    store.save(replace(new_rollout(), id="the-next", candidate=3))
    assert _followed(StoreAccess(store), first).state == last.state


def test_what_replicas_say_neither_drives_the_terminal_nor_breaks_its_lines(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    none = CliRunner().invoke(rollout, ["history", "digits", "--store", str(tmp_path)])
    assert none.stdout == "there was no rollout yet\n"
    why = Reason("replicas.cannot-load", "it cannot be loaded: \x1b[2J\nno such file")
    state, verdict = State(Phase.ROLLED_BACK, reason=why), Verdict(Outcome.FAIL, (why,))
    store.save(new_rollout().moved(state, verdict, 1e9))
    for command in ("history", "explain", "status"):
        arguments = [command, "digits", "--store", str(tmp_path)]
        told = CliRunner(env={"COLUMNS": "200"}).invoke(rollout, arguments).stdout
        assert "it cannot be loaded: \\x1b[2J\\nno such file\n" in told


def test_a_rollout_that_nobody_can_tell_of_is_not_taken_for_one_rolled_back(tmp_path: Path) -> None:
    FileStore(tmp_path)
    never = CliRunner().invoke(rollout, ["watch", "digits", "--store", str(tmp_path)])
    assert (never.exit_code, "had no rollout yet" in never.stderr) == (3, True)
    with pytest.raises(SluiceError, match="cannot be followed any more: no gateway answers") as lost:
        _followed(GatewayAccess("http://127.0.0.1:9", None), new_rollout())
    assert not isinstance(lost.value, InvalidInput), "the command is as good as it was before"
    with pytest.raises(SluiceError, match=r"cannot be followed any more: .* had no rollout digits-2"):
        _followed(StoreAccess(FileStore(tmp_path)), replace(new_rollout(), id="digits-2"))


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(HELD))
    return path


async def test_commands_work_at_a_gateway_that_runs_elsewhere(tmp_path: Path, plan: Path) -> None:
    path, admin, caller = keys_file(tmp_path)
    async with scene_over(tmp_path / "store", VersionedReplica(), headers=caller, keys_file=path) as scene:
        where = ["--gateway", scene.running.http_url]
        await through_its_life(scene, [*where, "--key", admin["x-api-key"]], plan)
        refused = await sluice(where, "status", SLUICE_API_KEY=caller["x-api-key"])
        assert (refused.exit_code, "refused: " in refused.stderr) == (1, True)
        keyless = await sluice(where, "status", SLUICE_API_KEY="")
        assert (keyless.exit_code, "it requires a key: pass --api-key" in keyless.stderr) == (2, True)
        both = await sluice([*where, "--store", str(tmp_path)], "status")
        assert (both.exit_code, "two places" in both.stderr) == (2, True)
    gone = await sluice(where, "status")
    assert (gone.exit_code, "no gateway answers at http://" in gone.stderr) == (2, True)


async def test_status_at_a_gateway_tells_of_records_that_cannot_be_read(tmp_path: Path) -> None:
    path, admin, caller = keys_file(tmp_path)
    store = tmp_path / "store"
    async with scene_over(store, VersionedReplica(), headers=caller, keys_file=path) as scene:
        scene.begin(HELD)
        (store / "flowers.json").write_text("{")
        where = ["--gateway", scene.running.http_url, "--key", admin["x-api-key"]]
        everything = await sluice(where, "status")
        assert (everything.exit_code, "digits" in everything.stdout) == (1, True)
        assert 'what is stored of model "flowers" cannot be read' in everything.stderr
        one = await sluice(where, "status", "digits")
        assert (one.exit_code, one.stderr) == (0, "")


def test_the_list_of_a_gateway_that_does_not_tell_of_unreadable_records_is_understood() -> None:
    assert _models({"rollouts": [{"model": "flowers"}, {"model": "digits"}]}) == ["digits", "flowers"]


async def test_commands_work_on_objects_of_a_cluster(
    tmp_path: Path, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with api_server() as server, scraping() as prometheus:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, server)))
        async with cluster_scene(server, prometheus, VersionedReplica()) as scene:
            await through_its_life(scene, ["--store", "kubernetes://serving"], plan)


def test_a_place_that_is_none_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(InvalidInput, match="no cluster can be found"):
        open_store("kubernetes://serving")
    for bad in ("kubernetes://", "kubernetes://A_b", "kubernetes://a/b"):
        with pytest.raises(InvalidInput, match="names no namespace"):
            open_store(bad)


def test_a_gateway_that_finds_no_cluster_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    found = settings.load(rollout_namespace="sluice", prometheus_url="http://127.0.0.1:9")
    with (
        pytest.raises(
            InvalidInput, match=r"no cluster can be found \(.*none not found\); set KUBECONFIG, or"
        ),
        assembly.shared_by(found, Steering(), Metrics(CollectorRegistry()), tmp_path),
    ):
        pass


async def test_commands_work_on_a_folder(tmp_path: Path, plan: Path) -> None:
    async with scene_over(tmp_path / "store", VersionedReplica()) as scene:
        await through_its_life(scene, ["--store", str(tmp_path / "store")], plan)

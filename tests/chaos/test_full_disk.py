"""A full disk under a gateway's log and under its rollouts: it answers all the same, and says so."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from serving.rollout.machine import Phase
from tests.rollout.replicas import FAST, PICTURES, Scene, VersionedReplica, scene_over
from tests.support.fake_replica import FakeReplica, running, until
from tests.support.gateways import counted
from tests.support.http import PATH, PNG, grey_png


async def test_a_log_that_cannot_be_written_fails_no_request() -> None:
    """Every write to /dev/full says that there is no space left (full(4))."""
    async with running(FakeReplica()) as fake:
        with await asyncio.to_thread(Path("/dev/full").open, "w") as full:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "serving.cli", "gateway", f"--replica={fake.address}", "--model=digits",
                "--http-port=0", "--grpc-port=0", stdout=asyncio.subprocess.PIPE, stderr=full,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "SLUICE_ACCESS_LOG_SHARE": "1"},
            )  # fmt: skip
        assert process.stdout is not None
        try:
            async with asyncio.timeout(60):
                while "http://" not in (line := (await process.stdout.readline()).decode()):
                    assert line, "it ended"
                url = "http://" + line.partition("http://")[2].split()[0]
                async with httpx.AsyncClient(base_url=url) as client:
                    while (await client.get("/readyz")).status_code != 200:
                        await asyncio.sleep(0.02)
                    for body, status in ((grey_png(200), 200), (b"nonsense", 400)) * 20:
                        answer = await client.post(PATH, content=body, headers=PNG)
                        assert answer.status_code == status, answer.text
                    metrics = (await client.get("/metrics")).text
                lost = next(line for line in metrics.splitlines() if line.startswith("sluice_log_lines_lost"))
                assert float(lost.split()[1]) >= 40
                assert process.returncode is None
        finally:
            process.terminate()
            await process.wait()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own, of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write a file until there is no space left."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


async def feedback(scene: Scene) -> httpx.Response:
    """Tell the true label of an image that was classified just now."""
    answer = await scene.client.post(PATH, content=PICTURES[3], headers=PNG)
    told = {"prediction_id": answer.json()["results"][0]["prediction_id"], "label": "class-3"}
    return await scene.client.post("/v1/feedback", json=told)


async def test_a_full_disk_under_the_rollouts_stops_them_and_nobody_else(small_disk: Path) -> None:
    store = small_disk / "rollouts"
    plan = FAST | {"canary": [{"weight": 0.5, "min_time_s": 1000}]}
    async with scene_over(store, VersionedReplica()) as scene:
        scene.begin(plan)
        await scene.reached(Phase.CANARY)
        assert (await feedback(scene)).json() == {"status": "accepted"}
        fill(small_disk / "filler")
        with capture_logs() as lines:
            failed = counted(scene.running, "sluice_rollout_look_failures_total")
            await until(lambda: counted(scene.running, "sluice_rollout_look_failures_total") >= failed + 3)
            stopped_at, answered = scene.rollout.revision, len(scene.answered)
            refused = await feedback(scene)
            await until(lambda: len(scene.answered) >= answered + 50)
        assert refused.status_code == 503, refused.text
        assert refused.json()["retryable"] is True
        assert counted(scene.running, "sluice_feedback_store_failures_total") >= 1
        assert any(
            "look at the rollouts failed" in line["event"] and "space" in line["error"] for line in lines
        )
        assert scene.rollout.revision == stopped_at
        whole = [json.loads(path.read_text()) for path in store.rglob("*.json")]
        assert len(whole) >= 3, "the state, the one before it, and the counts"
        (small_disk / "filler").unlink()
        await until(lambda: scene.rollout.revision >= stopped_at + 3)
        assert (await feedback(scene)).json() == {"status": "accepted"}
        await scene.ordered("promote")
        await scene.reached(Phase.PROMOTED)
        assert {status for status, _ in scene.answered} == {200}
    assert not list(store.rglob("*.tmp"))

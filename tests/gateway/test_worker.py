"""A worker without its parent, and the parent of workers that are scripts."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from serving.processes import children, workers
from serving.processes.upstream import ConfigFile, Upstream
from serving.processes.work_folder import work_folder
from serving.settings import Settings

WAIT_S = 60.0
LISTENS = """printf '{"listening": true}\\n{"models": {"digits": [1]}}\\n'"""


@asynccontextmanager
async def scripted(
    script: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> AsyncIterator[workers.Workers]:
    """Workers that are this shell script, as their parent has them."""
    program = folder / "worker"
    program.write_text(f"#!/bin/sh\nread -r job\n{script}\nexec cat > /dev/null\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    values: dict[str, Any] = {"workers": 1, "http_port": 0, "grpc_port": 0} | settings
    async with workers.up(Settings(**values), Upstream((), (), folder), folder) as running_workers:
        yield running_workers


async def models_told_by(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """What the parent of a worker that is this shell script takes for its models."""
    async with scripted(script, folder, monkeypatch) as running_workers, asyncio.timeout(WAIT_S):
        return await running_workers.ready()


async def test_a_worker_may_have_thousands_of_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = """printf '{"listening": true}\\n{"models": {"%0200000d": [1]}}\\n' 7"""
    assert await models_told_by(script, tmp_path, monkeypatch) == {"7".zfill(200_000): [1]}


async def test_a_worker_that_is_killed_as_it_speaks_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "FIRST_PAUSE_S", 0.001)
    script = (
        f"if mkdir {tmp_path / 'once'}; then\n"
        """  printf '{"listening": true}\\n{"models": {"dig'; kill -KILL $$\n"""
        f"fi\n{LISTENS}"
    )
    assert await models_told_by(script, tmp_path, monkeypatch) == {"digits": [1]}


async def test_who_waits_no_longer_for_the_models_leaves_the_others_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tmp_path / "loaded"
    script = (
        """printf '{"listening": true}\\n'\n"""
        f"until [ -e {loaded} ]; do sleep 0.02; done\n"
        """printf '{"models": {"digits": [1]}}\\n'"""
    )
    async with scripted(script, tmp_path, monkeypatch) as running_workers, asyncio.timeout(WAIT_S):
        waiting = asyncio.create_task(running_workers.ready())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await running_workers.ready()
        loaded.touch()
        assert await waiting == {"digits": [1]}


def jobs_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in folder.glob("job.*")]


@pytest.mark.parametrize(
    ("all_have", "each_has"),
    [
        (
            {
                "max_in_flight": 100,
                "max_in_flight_bytes": 9000,
                "max_memory_bytes": 7000,
                "decode_threads": 4,
            },
            {"max_in_flight": 50, "max_in_flight_bytes": 4500, "max_memory_bytes": 3500, "decode_threads": 2},
        ),
        (
            {"max_in_flight": 1, "max_in_flight_bytes": 1500, "max_memory_bytes": 1, "decode_threads": 1},
            {"max_in_flight": 1, "max_in_flight_bytes": 1000, "max_memory_bytes": 1, "decode_threads": 1},
        ),
        ({"max_memory_bytes": None}, {"max_memory_bytes": None}),
    ],
    ids=["enough for all", "less than one each", "without a limit"],
)
async def test_each_has_its_part_of_what_there_is_to_share(
    all_have: dict[str, Any], each_has: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f'printf "%s" "$job" > {tmp_path}/job.$$; {LISTENS}'
    settings = {"workers": 2, "max_body_bytes": 1000, **all_have}
    async with scripted(script, tmp_path, monkeypatch, **settings) as running_workers:
        jobs = jobs_in(tmp_path)
    assert sorted(job["name"] for job in jobs) == running_workers.names() == ["0", "1"]
    for job in jobs:
        assert {name: job["settings"][name] for name in each_has} == each_has


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_they_hold_a_port_and_give_it_back(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            pytest.skip(f"this machine has no {host}")
    async with scripted(LISTENS, tmp_path, monkeypatch, http_host=host, grpc_host=host) as running_workers:
        port = int(running_workers.http_url.rpartition(":")[2])
        with socket.socket(family) as other, pytest.raises(OSError, match="in use"):
            other.bind((host, port))
    with socket.socket(family) as other:
        other.bind((host, port))
    assert running_workers.grpc_address.startswith(f"[{host}]:" if ":" in host else f"{host}:")


async def test_one_that_drains_has_as_long_as_a_drain_may_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "END_GRACE_S", 0.0)
    drained = tmp_path / "drained"
    script = f"trap 'sleep 0.3; touch {drained}; exit' TERM; {LISTENS}; while sleep 0.05; do :; done"
    async with scripted(script, tmp_path, monkeypatch, drain_timeout_s=60.0) as running_workers:
        await running_workers.ready()
    assert drained.exists()


async def running_worker(folder: Path, of_model_server: Path, **streams: Any) -> asyncio.subprocess.Process:
    """A worker as its parent starts it, which was told what to do."""
    settings = Settings(http_port=0, grpc_port=0)
    config = ConfigFile(of_model_server / "models.config", folder)
    upstream = Upstream(("127.0.0.1:1",), ("digits",), folder, config)
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "serving.worker", stdin=asyncio.subprocess.PIPE, **streams
    )
    assert child.stdin is not None
    child.stdin.write(workers._job(settings, upstream, folder, "0"))
    return child


async def test_a_worker_keeps_the_folders_that_it_needs_until_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own and its model server's; the parent, who has made them, may be gone."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)  # where it is kept once it has been found
    own, of_model_server = (tmp_path / f"sluice-{name}" for name in "ab")
    for folder in (own, of_model_server):
        folder.mkdir()
        (folder / "owner.lock").touch()
    child = await running_worker(own, of_model_server, stdout=asyncio.subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    async with asyncio.timeout(WAIT_S):
        assert json.loads(await child.stdout.readline()) == {"listening": True}
        with work_folder():
            assert own.is_dir()
            assert of_model_server.is_dir()
        child.stdin.close()
        assert await child.wait() == 0
    with work_folder():
        assert not own.exists()
        assert not of_model_server.exists()


async def test_a_worker_that_nobody_hears_any_more_drains_without_a_stack_trace(tmp_path: Path) -> None:
    (tmp_path / "owner.lock").touch()
    reading, writing = os.pipe()
    os.close(reading)
    try:
        child = await running_worker(tmp_path, tmp_path, stdout=writing, stderr=asyncio.subprocess.PIPE)
    finally:
        os.close(writing)
    assert child.stdin is not None
    child.stdin.close()
    async with asyncio.timeout(WAIT_S):
        _, errors = await child.communicate()
    assert b"Traceback" not in errors
    assert b"shutting down" in errors

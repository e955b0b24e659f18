"""The model server as a child: what it is started with, what of its words is passed on, and its restarts."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from serving import grpc_environment
from serving.errors import FailedPrecondition
from serving.main import new_metrics
from serving.processes import children, supervisor
from serving.processes.supervisor import ModelServerProcess, find_program
from serving.processes.upstream import ConfigFile
from serving.telemetry.metrics import Metrics
from tests.support.fake_replica import until


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(children, "FIRST_PAUSE_S", 0.001)
    return tmp_path


def program(folder: Path, script: str) -> str:
    """A program that is this shell script."""
    path = folder / "model-server"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    return str(path)


@asynccontextmanager
async def kept_alive(folder: Path, *command: str) -> AsyncIterator[tuple[ModelServerProcess, Metrics]]:
    metrics = new_metrics()
    config = ConfigFile(folder / "models.config", folder)
    child = ModelServerProcess(list(command), work_dir=folder, config=config, metrics=metrics)
    running = asyncio.create_task(child.run())
    try:
        yield child, metrics
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def restarts(metrics: Metrics) -> float:
    return metrics.registry.get_sample_value("sluice_model_server_restarts_total") or 0.0


async def until_restarted(folder: Path, script: str) -> None:
    """Run a program that is this shell script until it has been started anew.

    On uvloop, as a gateway does: for asyncio's own loop a child runs for as long as anybody has its pipes.
    """
    async with kept_alive(folder, program(folder, script)) as (_, metrics):
        await until(lambda: restarts(metrics) >= 1)


@pytest.mark.parametrize("is_own", [False, True], ids=["another", "Sluice's own"])
async def test_it_is_started_over_the_socket_with_what_it_needs(
    is_own: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of Sluice's own flags another program knows nothing."""
    script = (
        f"cd {folder}; ls > there; echo $$ > pid\n"
        'printf "%s\\n" "$@" > part; mv part arguments; exec sleep 1000'
    )
    command = (program(folder, script), "--of=ours")
    if is_own:
        monkeypatch.setattr(supervisor, "OWN_PROGRAM", command)
    with socket.socket(socket.AF_UNIX) as left_by_one_that_was_killed:
        left_by_one_that_was_killed.bind(str(folder / "model-server.sock"))
    async with kept_alive(folder, *command) as (child, metrics):
        await until((folder / "arguments").exists)
        first, *arguments = (folder / "arguments").read_text().splitlines()
        pid = int((folder / "pid").read_text())
        assert os.getsid(pid) == pid, "Ctrl-C in the gateway's terminal is not for it"
        assert restarts(metrics) == 0
    assert first == "--of=ours"
    flags = dict(argument.removeprefix("--").partition("=")[::2] for argument in arguments)
    port = int(flags.pop("port"))
    assert (port == 0) == is_own
    assert flags == {
        "grpc_socket_path": child.address.removeprefix("unix:"),
        "model_config_file": str(folder / "models.config"),
        "file_system_poll_wait_seconds": "1",
        "load_retry_interval_micros": "1000000",
        **({"listen_before_loading": ""} if is_own else {}),
    }
    assert "model-server.sock" not in (folder / "there").read_text().split()


async def test_another_programs_grpc_is_told_only_what_the_user_tells_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its release of gRPC may not know the names that ours does, and would say so at each start."""
    for name in [name for name in os.environ if name.startswith("GRPC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GRPC_VERBOSITY", "INFO")
    grpc_environment.prepare()
    script = f"cd {folder}; env > part; mv part environment; exec sleep 1000"
    async with kept_alive(folder, program(folder, script)):
        await until((folder / "environment").exists)
    told = [line for line in (folder / "environment").read_text().splitlines() if line.startswith("GRPC_")]
    assert told == ["GRPC_VERBOSITY=INFO"]


def test_what_it_says_is_passed_on_but_for_what_tensorflow_says_at_each_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(supervisor, "LAST_WORDS_S", 60.0)
    lines = (
        r"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n",
        r"I0000 00:00:1700000000.123456 7 cpu_feature_guard.cc:227] oneDNN custom operations are on\n",
        r"E0000 00:00:1700000000.123456 7 cuda_executor.cc:1] failed call to cuInit: NO DEVICE\n",
        r"E0000 00:00:1700000000.123456 7 other.cc:1] an error\n",
        r"na\0357f\n",
        "x" * 100_000 + r"\n",  # beyond the reader's limit
    )
    said = " ".join(f"'{line}'" for line in lines)
    script = f"printf %b {said} >&2; (sleep 0.2; printf 'its last words' >&2) & exit 3"
    uvloop.run(until_restarted(folder, script))
    told = capsys.readouterr().err
    assert "its last words" in told
    assert "na\ufffdf\n" in told
    assert "] an error\n" in told
    for chatter in ("before absl", "oneDNN", "cuInit"):
        assert chatter not in told


def test_what_a_dead_one_started_itself_does_not_hold_up_the_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its stderr, too, which so does not end."""
    monkeypatch.setattr(supervisor, "LAST_WORDS_S", 0.001)
    pids = folder / "pids"
    try:
        uvloop.run(until_restarted(folder, f"sleep 1000 & echo $! >> {pids}; exit 3"))
    finally:
        for pid in pids.read_text().split():
            os.kill(int(pid), signal.SIGKILL)


def test_a_program_may_be_named_with_arguments() -> None:
    assert find_program(f"{sys.executable} -c 'a b'") == [sys.executable, "-c", "a b"]
    assert find_program(None) == [sys.executable, "-m", "serving.modelserver"]


@pytest.mark.parametrize("named", ["", "/no/such/program --port=1"])
def test_what_is_no_program_is_refused(named: str) -> None:
    with pytest.raises(FailedPrecondition, match=f'the model server "{named}" is not a program that can be'):
        find_program(named)

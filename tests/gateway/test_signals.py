"""Signals: what they end, when, and what they leave behind."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.fake_replica import FakeReplica, running, until
from tests.support.http import PATH, PNG, grey_png, refused
from tests.support.processes import COMMAND, LiveProcess, started

WAIT_S = 60.0
# Whoever runs the tests may ignore it, as nohup does, and a child would, too.
HEEDING_SIGHUP = ("env", "--default-signal=HUP")


@asynccontextmanager
async def draining(
    *arguments: str, number: signal.Signals = signal.SIGTERM
) -> AsyncIterator[tuple[LiveProcess, asyncio.Event, asyncio.Task[Any]]]:
    """A gateway that got a signal as it answered a request; what lets its replica go on, and the request."""
    release, entered = asyncio.Event(), asyncio.Event()

    async def held(_request: Any) -> None:
        entered.set()
        await release.wait()

    async with running(FakeReplica(before_predict=held)) as replica:
        command = ["gateway", f"--replica={replica.address}", "--model=digits", *arguments]
        async with (
            started(command, under=HEEDING_SIGHUP) as live,
            httpx.AsyncClient(base_url=live.http_url, timeout=WAIT_S) as client,
        ):
            asked = asyncio.create_task(client.post(PATH, content=grey_png(200), headers=PNG))
            await entered.wait()
            live.process.send_signal(number)
            await until(lambda: any("shutting down" in line for line in live.errors))
            yield live, release, asked


@pytest.mark.parametrize("arguments", [(), ("--workers=2",)], ids=["alone", "workers"])
async def test_what_was_accepted_is_answered_however_often_sigterm_comes(arguments: Sequence[str]) -> None:
    async with draining(*arguments) as (live, release, asked):
        live.process.send_signal(signal.SIGTERM)
        await until(lambda: any("shutting down already" in line for line in live.errors))
        release.set()
        assert (await asked).status_code == 200
        assert await asyncio.wait_for(live.process.wait(), WAIT_S) == 0


async def test_what_was_accepted_is_answered_when_the_terminal_closes() -> None:
    """The shell tells its jobs of that, and the kernel then tells them again."""
    async with draining(number=signal.SIGHUP) as (live, release, asked):
        live.process.send_signal(signal.SIGHUP)
        await until(lambda: any("SIGHUP came; shutting down already" in line for line in live.errors))
        release.set()
        assert (await asked).status_code == 200
        assert await asyncio.wait_for(live.process.wait(), WAIT_S) == 0


async def test_another_ctrl_c_cuts_short_what_drains_and_who_waits_is_told() -> None:
    async with draining(number=signal.SIGINT) as (live, _, asked):
        live.process.send_signal(signal.SIGINT)
        refused(await asked, 503, "unavailable")  # long before the 30 s that draining may take
        assert await asyncio.wait_for(live.process.wait(), WAIT_S / 4) == 130


async def test_under_nohup_a_gateway_outlives_its_terminal() -> None:
    ignoring = ("sh", "-c", 'trap "" HUP; exec "$@"', "sh")
    async with running(FakeReplica()) as replica:
        command = ["gateway", f"--replica={replica.address}", "--model=digits"]
        async with started(command, under=ignoring) as live:
            for number in (signal.SIGHUP, signal.SIGUSR1):
                live.process.send_signal(number)
            await until(lambda: any("Thread MainThread" in line for line in live.errors))
            assert not any("shutting down" in line for line in live.errors)


async def test_the_stacks_of_a_gateway_that_drains_can_be_had() -> None:
    async with draining() as (live, release, asked):
        live.process.send_signal(signal.SIGUSR1)
        await until(lambda: any("Thread MainThread" in line for line in live.errors))
        release.set()
        assert (await asked).status_code == 200
        assert await asyncio.wait_for(live.process.wait(), WAIT_S) == 0


def left_in(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_gateway_that_is_ended_as_it_starts_leaves_nothing_behind(
    number: signal.Signals, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("start")  # the path of a socket is short
    arguments = ["--replica=127.0.0.1:1", "--model=digits", "--workers=2", "--http-port=0", "--grpc-port=0"]
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        "gateway",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    parent = psutil.Process(process.pid)
    await until(lambda: len(parent.children()) == 2)
    workers = parent.children()
    process.send_signal(number)
    said, errors = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert (process.returncode, said) == (0, b"")
    assert b"Traceback" not in errors
    assert left_in(folder) == []
    _, alive = await asyncio.to_thread(psutil.wait_procs, workers, WAIT_S)
    assert alive == []

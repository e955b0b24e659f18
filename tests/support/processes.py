"""Live processes of `sluice`, started as a user would."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

import httpx

COMMAND = (sys.executable, "-m", "serving.cli")
START_TIMEOUT_S = 90.0
END_TIMEOUT_S = 60.0


@dataclass
class LiveProcess:
    """A `sluice serve` or `sluice gateway` that is up.

    Attributes:
        lines: what it has printed to stdout so far.
        errors: what it has printed to stderr so far.
    """

    process: asyncio.subprocess.Process
    started: float
    ready_after_s: float = 0.0
    http_url: str = ""
    grpc_address: str = ""
    lines: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.process.pid

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit code."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(END_TIMEOUT_S):
            return await self.process.wait()

    async def until_ready(self) -> None:
        """Wait until /readyz says so."""
        async with httpx.AsyncClient(base_url=self.http_url) as client, asyncio.timeout(START_TIMEOUT_S):
            while (await client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.02)
        self.ready_after_s = time.monotonic() - self.started


async def _collect(stream: asyncio.StreamReader, lines: list[str]) -> None:
    while line := await stream.readline():
        lines.append(line.decode().rstrip())


async def _find(live: LiveProcess, pattern: str) -> str:
    async with asyncio.timeout(START_TIMEOUT_S):
        while True:
            for line in list(live.lines):
                if found := re.match(pattern, line):
                    return found[1]
            if live.process.returncode is not None:
                raise AssertionError("it ended: " + "\n".join(live.errors))
            await asyncio.sleep(0.02)


@asynccontextmanager
async def started(
    arguments: Sequence[str], environment: dict[str, str] | None = None, under: Sequence[str] = ()
) -> AsyncIterator[LiveProcess]:
    """`sluice ARGUMENTS` on free ports, up and ready; it must end well when the block ends.

    `under` is a program, with its arguments, that runs the rest in its own process, such as prlimit.
    """
    process = await asyncio.create_subprocess_exec(
        *under,
        *COMMAND,
        *arguments,
        "--http-port=0",
        "--grpc-port=0",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
    )
    live = LiveProcess(process, time.monotonic())
    assert process.stdout is not None
    assert process.stderr is not None
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_collect(process.stdout, live.lines))
        tasks.create_task(_collect(process.stderr, live.errors))
        try:
            live.http_url = await _find(live, r"HTTP\s+(http://\S+)")
            live.grpc_address = await _find(live, r"gRPC\s+(\S+)")
            await live.until_ready()
            yield live
            if process.returncode is None:
                assert await live.end() == 0, "\n".join(live.errors[-20:])
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def started_gateway(address: str, model: str) -> AbstractAsyncContextManager[LiveProcess]:
    """A gateway process in front of one replica."""
    return started(["gateway", f"--replica={address}", f"--model={model}"])

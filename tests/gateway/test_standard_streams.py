"""A gateway's stdin, stdout and stderr: whether they are there, and who reads them, changes no answer."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path

import httpx

from tests.support.fake_replica import FakeReplica, running
from tests.support.http import PATH, PNG, grey_png
from tests.support.processes import COMMAND, LiveProcess, started

WAIT_S = 60.0


def behind(live: LiveProcess, number: int) -> Path:
    """What a process has open under a number."""
    return Path(f"/proc/{live.pid}/fd/{number}").readlink()


async def test_a_gateway_whose_parent_closed_them_answers_and_ends_well() -> None:
    """Some supervisors do; a connection must not get the number of stderr, or it would be sent the log."""
    closing = ("sh", "-c", 'exec "$@" <&- 2>&-', "sh")
    async with running(FakeReplica()) as replica:
        command = ["gateway", f"--replica={replica.address}", "--model=digits"]
        async with (
            started(command, under=closing) as live,
            httpx.AsyncClient(base_url=live.http_url, timeout=WAIT_S) as client,
        ):
            assert [behind(live, number) for number in (0, 2)] == [Path(os.devnull)] * 2
            assert (await client.post(PATH, content=grey_png(200), headers=PNG)).status_code == 200


async def test_a_gateway_goes_on_when_whoever_read_its_stdout_has_left() -> None:
    """As in `sluice gateway | head -1`: it has more to say once the model is there."""
    async with running(FakeReplica(versions={"digits": set()})) as replica:
        reading, writing = os.pipe()
        command = ["gateway", f"--replica={replica.address}", "--model=digits"]
        process = await asyncio.create_subprocess_exec(
            *COMMAND, *command, "--http-port=0", "--grpc-port=0",
            stdout=writing, stderr=asyncio.subprocess.DEVNULL, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        os.close(writing)
        try:
            with os.fdopen(reading) as said:
                found = re.search(r"http://\S+", await asyncio.to_thread(said.readline))
            assert found
            async with httpx.AsyncClient(base_url=found[0], timeout=WAIT_S) as client:
                replica.versions["digits"].add(1)
                async with asyncio.timeout(WAIT_S):
                    while (await client.get("/readyz")).status_code != 200:
                        await asyncio.sleep(0.02)
                for _ in range(20):
                    assert (await client.post(PATH, content=grey_png(200), headers=PNG)).status_code == 200
            assert process.returncode is None
        finally:
            process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(process.wait(), WAIT_S)

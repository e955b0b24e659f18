"""A gateway whose log cannot be written, as on a full disk: it answers all the same."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import httpx

from tests.support.fake_replica import FakeReplica, running
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
                assert process.returncode is None
        finally:
            process.terminate()
            await process.wait()

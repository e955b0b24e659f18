"""A gateway that may have only so much memory: it refuses what does not fit, lives, and answers the rest."""

from __future__ import annotations

import asyncio
import io
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from tests.support.fake_replica import FakeReplica, running
from tests.support.pictures import encoded, gradient
from tests.support.processes import LiveProcess, started

PATH = "/v1/models/digits:classify"
PNG = {"content-type": "image/png"}
PICTURE = encoded(gradient(), "PNG")
MIB = 2**20
LARGE_BYTES = 24 * MIB
CLIENTS = 24
# Beyond what a process has mapped that is idle: most of that is stacks and arenas that are not in use.
ROOM_BYTES = 160 * MIB


@asynccontextmanager
async def narrow_gateway(*, from_its_start: bool) -> AsyncIterator[tuple[LiveProcess, httpx.AsyncClient]]:
    """A gateway process that may map `ROOM_BYTES` more than one that is idle, and a client of it.

    If it has been so from its start it knows, and keeps bodies to a part of it.
    """
    if shutil.which("prlimit") is None:
        pytest.skip("needs prlimit")
    async with running(FakeReplica()) as fake:
        command = ["gateway", f"--replica={fake.address}", "--model=digits"]
        async with started(command) as live, httpx.AsyncClient(base_url=live.http_url, timeout=60) as client:
            process = psutil.Process(live.pid)
            limit_bytes = process.memory_info().vms + ROOM_BYTES
            if not from_its_start:
                process.rlimit(psutil.RLIMIT_AS, (limit_bytes, limit_bytes))
                yield live, client
                return
        async with (
            started(command, under=["prlimit", f"--as={limit_bytes}"]) as live,
            httpx.AsyncClient(base_url=live.http_url, timeout=60) as client,
        ):
            yield live, client


async def post(client: httpx.AsyncClient, body: bytes) -> httpx.Response:
    return await client.post(PATH, content=body, headers=PNG)


async def assert_answers(live: LiveProcess, client: httpx.AsyncClient) -> None:
    assert live.process.returncode is None
    for _ in range(3):
        answer = await post(client, PICTURE)
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("from_its_start", [True, False])
async def test_more_large_bodies_than_there_is_memory_for_are_refused(*, from_its_start: bool) -> None:
    """Pictures with much behind their end, which decoders do not look at."""
    body = PICTURE + bytes(LARGE_BYTES - len(PICTURE))
    async with narrow_gateway(from_its_start=from_its_start) as (live, client):
        answers = await asyncio.gather(*(post(client, body) for _ in range(CLIENTS)))
        seen = Counter(each.status_code for each in answers)
        await assert_answers(live, client)
    assert set(seen) == {200, 503}, seen
    assert all(each.headers["retry-after"] == "1" for each in answers if each.status_code == 503)


async def test_an_image_that_there_is_no_memory_for_is_refused_as_that() -> None:
    pixels = io.BytesIO()
    Image.fromarray(np.zeros((7900, 7900, 3), np.uint8)).save(pixels, "PNG", compress_level=1)
    async with narrow_gateway(from_its_start=False) as (live, client):
        for _ in range(2):
            large, small = await asyncio.gather(post(client, pixels.getvalue()), post(client, PICTURE))
            assert (large.status_code, small.status_code) == (503, 200), large.text
            assert "not enough memory for this request" in large.json()["detail"]
        await assert_answers(live, client)

"""A gateway that may have only so much memory: it refuses what does not fit, lives, and answers the rest."""

from __future__ import annotations

import asyncio
import io
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import uvicorn
from PIL import Image
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from serving.errors import InvalidInput
from serving.memory import Bound, Usage, fitting, held_by_group
from serving.rest.connection import Connection
from serving.rest.unread import Unread
from serving.settings import Settings
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
# Of which bodies get a third, and stacks, buffers and what malloc keeps the others.
LARGER_ROOM_BYTES = 384 * MIB


@asynccontextmanager
async def narrow_gateway(
    *, from_its_start: bool, **settings: str
) -> AsyncIterator[tuple[LiveProcess, httpx.AsyncClient]]:
    """A gateway process that may map so much more than one that is idle, and a client of it.

    If it has been so from its start it knows, and keeps bodies to a part of it.
    """
    if shutil.which("prlimit") is None:
        pytest.skip("needs prlimit")
    async with running(FakeReplica()) as fake:
        command = ["gateway", f"--replica={fake.address}", "--model=digits"]
        async with started(command, settings) as live, client_of(live) as client:
            process = psutil.Process(live.pid)
            mapped_bytes = process.memory_info().vms
            if not from_its_start:
                process.rlimit(psutil.RLIMIT_AS, (mapped_bytes + ROOM_BYTES, mapped_bytes + ROOM_BYTES))
                yield live, client
                return
        under = ["prlimit", f"--as={mapped_bytes + LARGER_ROOM_BYTES}"]
        async with started(command, settings, under) as live, client_of(live) as client:
            yield live, client


def client_of(live: LiveProcess) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=live.http_url, timeout=60)


def picture_of(size_bytes: int) -> bytes:
    """A picture with much behind its end, which decoders do not look at."""
    return PICTURE + bytes(size_bytes - len(PICTURE))


async def post(client: httpx.AsyncClient, body: bytes) -> httpx.Response:
    return await client.post(PATH, content=body, headers=PNG)


async def assert_answers(live: LiveProcess, client: httpx.AsyncClient) -> None:
    """Soon, and from then on: it may refuse for the moment in which it gives memory back."""
    assert live.process.returncode is None
    async with asyncio.timeout(10):
        while (await post(client, PICTURE)).status_code == 503:
            await asyncio.sleep(0.05)
    for _ in range(3):
        answer = await post(client, PICTURE)
        assert answer.status_code == 200, answer.text


async def test_more_large_bodies_than_there_is_memory_for_are_refused() -> None:
    body = picture_of(LARGE_BYTES)
    async with narrow_gateway(from_its_start=True) as (live, client):
        answers = await asyncio.gather(*(post(client, body) for _ in range(CLIENTS)))
        await assert_answers(live, client)
    seen = Counter(each.status_code for each in answers)
    assert set(seen) == {200, 503}, seen
    assert all(each.headers["retry-after"] == "1" for each in answers if each.status_code == 503)


async def test_a_body_that_there_is_no_memory_for_is_refused_as_that() -> None:
    """Its parts have room, but not twice, which it takes to put them together."""
    body = picture_of(110 * MIB)
    async with narrow_gateway(from_its_start=False, SLUICE_MAX_BODY_BYTES=str(200 * MIB)) as (live, client):
        for _ in range(2):
            refused = await post(client, body)
            assert refused.status_code == 503, refused.text
            assert "not enough memory for this request" in refused.json()["detail"]
            assert refused.json()["retryable"] is True
            await assert_answers(live, client)


async def test_an_image_that_there_is_no_memory_for_is_refused_as_that() -> None:
    pixels = io.BytesIO()
    Image.fromarray(np.zeros((7900, 7900, 3), np.uint8)).save(pixels, "PNG", compress_level=1)
    async with narrow_gateway(from_its_start=False) as (live, client):
        for _ in range(2):
            large, small = await asyncio.gather(post(client, pixels.getvalue()), post(client, PICTURE))
            assert (large.status_code, small.status_code) == (503, 200), large.text
            assert "not enough memory for this request" in large.json()["detail"]
        await assert_answers(live, client)


class Forgetful(Connection):
    """Finds no memory for any part of a body, as the parser's callback may."""

    def on_body(self, body: bytes) -> None:
        raise MemoryError


async def test_bytes_that_the_parser_cannot_keep_are_not_called_bad_http() -> None:
    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    config = uvicorn.Config(app, lifespan="off", log_config=None)
    config.load()
    server = await asyncio.get_running_loop().create_server(
        lambda: Forgetful(
            config=config, server_state=ServerState(), app_state={}, settings=Settings(), unread=Unread(0)
        ),
        "127.0.0.1",
        0,
    )
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nabcd")
        async with asyncio.timeout(20):
            answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"\r\nretry-after: 1\r\n" in answer
    assert b"not enough memory for this request" in answer


def test_bodies_are_kept_to_a_third_of_the_least_that_is_left(tmp_path: Path) -> None:
    assert fitting(300, []) == 300
    assert fitting(300, [Bound(1000, 100)]) == 300
    assert fitting(301, [Bound(1000, 100)]) == 300
    assert fitting(300, [Bound(1000, 100), Bound(700, 400)]) == 100
    assert fitting(300, [Bound(100, 200)]) == 0
    (tmp_path / "some").write_text(f"{10**12}\n")
    (tmp_path / "none").write_text("max\n")
    names = [str(tmp_path / name) for name in ("none", "missing", "some")]
    found = [each for each in Usage(cgroup_files=names).bounds() if each.limit_bytes == 10**12]
    assert len(found) == 1
    assert 10 * MIB < found[0].used_bytes < 10**12


def test_what_a_control_group_holds_is_without_the_pages_of_files(tmp_path: Path) -> None:
    assert held_by_group(tmp_path) == 0
    new, old = tmp_path / "v2", tmp_path / "v1"
    new.mkdir()
    (new / "memory.current").write_text("1000\n")
    (new / "memory.stat").write_text("anon 500\ninactive_file 200\nactive_file 100\n")
    assert held_by_group(new) == 700
    old.mkdir()
    (old / "memory.usage_in_bytes").write_text("1000\n")
    (old / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 20\ntotal_active_file 30\n")
    assert held_by_group(old) == 950


def test_what_others_hold_in_the_group_counts_and_is_asked_for_once_a_second(tmp_path: Path) -> None:
    now = 0.0
    (tmp_path / "memory.max").write_text(str(10**12))
    (tmp_path / "memory.stat").write_text("")
    (tmp_path / "memory.current").write_text(str(6 * 10**11))
    usage = Usage(cgroup_files=[str(tmp_path / "memory.max")], clock=lambda: now)
    assert usage.left() == pytest.approx(4 * 10**11, abs=10**9)
    (tmp_path / "memory.current").write_text(str(7 * 10**11))
    assert usage.left() == pytest.approx(4 * 10**11, abs=10**9)
    now = 1.5
    assert usage.left() == pytest.approx(3 * 10**11, abs=10**9)


def test_a_setting_limits_what_is_resident() -> None:
    resident = psutil.Process().memory_info().rss
    bound = Usage(max_bytes=resident + 10**12, cgroup_files=()).bounds()[-1]
    assert bound.left_bytes == pytest.approx(10**12, abs=10**9)
    with pytest.raises(
        InvalidInput, match=r"max_memory_bytes is 1,000,000, and the gateway by itself takes \d"
    ):
        Usage(max_bytes=1_000_000)

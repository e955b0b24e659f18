"""The Python client over HTTP does not wait beyond its deadline, nor until then for who is away."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from serving.client import AsyncClient, AsyncGrpcClient, Client, Retries, http
from serving.errors import (
    DeadlineExceeded,
    Unavailable,
)
from serving.main import Running
from tests.doors.answering import answering, asked
from tests.doors.replica import ScriptedReplica


async def silent(_writer: asyncio.StreamWriter) -> None:
    """Answer nothing."""


async def slow(writer: asyncio.StreamWriter) -> None:
    """Answer a byte at a time."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
    for _ in range(100):
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.05)


async def stalled(writer: asyncio.StreamWriter) -> None:
    """Answer a piece just before the client gives up, and then no more."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
    await writer.drain()
    await asyncio.sleep(2.0)
    writer.write(b"x")
    await writer.drain()


async def body_less(writer: asyncio.StreamWriter) -> None:
    """Answer a head just before the client gives up, and then no more."""
    await asyncio.sleep(2.0)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
    await writer.drain()


async def without_length(writer: asyncio.StreamWriter) -> None:
    """Answer without saying how much, and then no more."""
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n{}")
    await writer.drain()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("answer", [stalled, body_less])
async def test_a_server_that_falls_silent_in_the_middle_is_not_waited_for_twice(
    kind: Any, answer: Any
) -> None:
    async with answering(answer) as url:
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"did not answer within 2 s"):
            await asked(kind, url, timeout_s=2.0)
        assert time.monotonic() - started < 4.0


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("answer", [silent, slow, without_length])
async def test_a_deadline_that_passes_is_told_as_one(kind: Any, answer: Any) -> None:
    async with answering(answer) as url:
        with pytest.raises(DeadlineExceeded, match=r"did not answer within 0\.\d+ s"):
            await asked(kind, url, timeout_s=0.2)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("images", [1, 2])
async def test_who_takes_a_request_slowly_is_not_waited_for_longer(kind: Any, images: int) -> None:
    async def take_slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while await reader.read(65_536):
                await asyncio.sleep(0.05)
        writer.close()

    server = await asyncio.start_server(take_slowly, "127.0.0.1", 0)
    async with server:
        url = "http://{}:{}".format(*server.sockets[0].getsockname())
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"did not answer within 0\.5 s"):
            await asked(kind, url, timeout_s=0.5, images=[bytes(30_000_000 // images)] * images)
        assert time.monotonic() - started < 8.0


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_the_gateways_own_word_on_a_deadline_is_waited_for(
    replica: ScriptedReplica, up: Running, kind: Any
) -> None:
    async def hang(_request: Any) -> None:
        await asyncio.Event().wait()

    replica.before_predict = hang
    with pytest.raises(DeadlineExceeded, match="the request's deadline passed before its answer"):
        await asked(kind, up.http_url, timeout_s=0.3)


class BlackHole:
    """A listener with no room for another connection: as where a path is cut, who asks hears nothing."""

    def __enter__(self) -> str:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=0)
        self._waiting = socket.create_connection(self._listener.getsockname())
        return "http://{}:{}".format(*self._listener.getsockname())

    def __exit__(self, *_: object) -> None:
        self._waiting.close()
        self._listener.close()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse what they have no room for")
@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_a_cut_path_does_not_use_up_the_deadline(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_CONNECT_S", 0.1)
    started = time.monotonic()
    with BlackHole() as url, pytest.raises(Unavailable, match=f"no gateway answers at {url}"):
        await asked(kind, url, timeout_s=60.0)
    assert time.monotonic() - started < 30.0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems wait for what they have sent")
@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_who_takes_nothing_more_on_a_connection_does_not_use_up_the_deadline(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the path of a connection is cut, which the same watch of the kernel's finds out."""
    monkeypatch.setattr(http, "_SILENT_MS", 200)

    async def take_nothing(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    server = await asyncio.start_server(take_nothing, "127.0.0.1", 0)
    async with server:
        url = "http://{}:{}".format(*server.sockets[0].getsockname())
        started = time.monotonic()
        with pytest.raises(Unavailable, match=f"no gateway answers at {url}"):
            await asked(kind, url, timeout_s=60.0, images=[bytes(30_000_000)])
        assert time.monotonic() - started < 30.0


def timer_of(port: int, to: int) -> int:
    """Which timer runs for the connection between these ports, as proc(5) has it: 2 where the kernel is to
    ask."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    (timer,) = [row[5] for row in rows if row[1].endswith(f":{port:04X}") and row[2].endswith(f":{to:04X}")]
    return int(timer.partition(":")[0], 16)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/net/tcp tells it")
@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_while_an_answer_is_waited_for_the_kernel_asks_whether_the_path_is_there(kind: Any) -> None:
    content = b'{"model": "digits", "version": 1, "results": []}'

    async def answer_once_asked(writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(10):
            ends = [writer.get_extra_info(each)[1] for each in ("peername", "sockname")]
            while timer_of(*ends) != 2:
                await asyncio.sleep(0.01)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
        await writer.drain()

    async with answering(answer_once_asked) as url:
        assert (await asked(kind, url)).version == 1


async def test_nobody_there_is_said_in_time() -> None:
    started = time.monotonic()
    for client in (
        AsyncClient("http://127.0.0.1:1", retries=Retries(attempts=2, first_pause_s=0.01)),
        AsyncGrpcClient("127.0.0.1:1", retries=Retries(attempts=2, first_pause_s=0.01)),
    ):
        with pytest.raises(Unavailable):
            await client.classify(b"x", timeout_s=5)
        await client.aclose()
    assert time.monotonic() - started < 30

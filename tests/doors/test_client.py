"""The Python client at a gateway: the same over HTTP and gRPC, sync and async."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from serving.client import AsyncClient, AsyncGrpcClient, Client, GrpcClient
from serving.errors import (
    BadImage,
    InvalidInput,
    NotFound,
)
from serving.main import Running
from serving.prediction import Prediction
from tests.doors.conftest import Live
from tests.support.http import grey_png


def test_the_sync_clients_agree(live: Live, photograph: bytes, tmp_path: Path) -> None:
    file = tmp_path / "seven.png"
    file.write_bytes(photograph)
    with Client(live.http_url) as http, GrpcClient(live.grpc_address) as rpc:
        for client in (http, rpc):
            one = client.classify(file, model="digits", top_k=2)
            assert (one.version, one.results[0].classes[0].label) == (live.version, live.label)
            assert len(one.results[0].classes) == 2
            many = client.classify([file, photograph, b"no image"], model="digits", label="stable")
            assert [len(each.classes) for each in many.results] == [5, 5, 0]
            assert isinstance(many.results[2].error, BadImage)
            with pytest.raises(NotFound, match="there are: digits"):
                client.classify(file, model="nope")
            with pytest.raises(NotFound, match="has no version 99"):
                client.classify(file, model="digits", version=99)
            with pytest.raises(InvalidInput):
                client.classify(file, model="digits", version=1, label="x")
            with pytest.raises(FileNotFoundError):
                client.classify(tmp_path / "none.png")


@pytest.mark.parametrize(
    "images", [[b"no image"], [b"no image", b"", b"none"], [b""]], ids=("one", "several", "nothing")
)
async def test_where_no_image_can_be_read_the_first_ones_error_is_raised(
    up: Running, images: list[bytes]
) -> None:
    """Over either protocol; where others can, it is their neighbour's result."""
    told = []
    for blocking in (Client(up.http_url), GrpcClient(up.grpc_address)):
        with blocking:
            with pytest.raises(BadImage) as refused:
                await asyncio.to_thread(blocking.classify, images)
            told.append(refused.value.message)
            mixed = await asyncio.to_thread(blocking.classify, [*images, grey_png(200)])
        assert [each.error is None for each in mixed.results] == [False] * len(images) + [True]
    for client in (AsyncClient(up.http_url), AsyncGrpcClient(up.grpc_address)):
        async with client:
            with pytest.raises(BadImage) as refused:
                await client.classify(images)
        told.append(refused.value.message)
    assert len(set(told)) == 1, told


def test_images_are_any_bytes(live: Live, photograph: bytes) -> None:
    with Client(live.http_url) as http, GrpcClient(live.grpc_address) as rpc:
        for client in (http, rpc):
            for image in (bytearray(photograph), memoryview(photograph)):
                assert client.classify(image).version == live.version


def test_images_may_come_from_a_generator(live: Live, photograph: bytes) -> None:
    images: Any = (photograph for _ in range(2))
    with Client(live.http_url) as client:
        assert len(client.classify(images).results) == 2


@pytest.mark.parametrize("kind", [AsyncClient, AsyncGrpcClient])
def test_an_async_client_may_be_made_before_there_is_a_loop(live: Live, photograph: bytes, kind: Any) -> None:
    client = kind(live.http_url if kind is AsyncClient else live.grpc_address)

    async def ask() -> Prediction:
        async with client:
            found: Prediction = await client.classify(photograph)
            return found

    assert asyncio.run(ask()).version == live.version


@pytest.mark.parametrize("kind", [AsyncClient, AsyncGrpcClient])
def test_an_async_client_is_of_one_event_loop(live: Live, photograph: bytes, kind: Any) -> None:
    client = kind(live.http_url if kind is AsyncClient else live.grpc_address)

    async def ask_twice() -> None:
        for _ in range(2):
            assert (await client.classify(photograph)).version == live.version

    asyncio.run(ask_twice())
    with pytest.raises(InvalidInput, match=r"used in another event loop, .*; make one in each"):
        asyncio.run(ask_twice())


# In a process of its own: this one has threads, which no fork of it would have.
FORK = """
import os, sys
from serving.client import Client
url, image = sys.argv[1], sys.stdin.buffer.read()
with Client(url) as client:
    client.classify(image)
    child = os.fork()
    client.classify(image)
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    client.classify(image)
"""


async def test_a_forked_process_does_not_share_its_parents_connection() -> None:
    """Each of both would read the other's answers."""
    asked: list[int] = []
    image = grey_png(1)
    content = b'{"model": "digits", "version": 1, "results": []}'

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine = len(asked)
        asked.append(0)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(len(image))
                asked[mine] += 1
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        url = "http://{}:{}".format(*server.sockets[0].getsockname())
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", FORK, url, stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        _, said = await process.communicate(image)
    assert process.returncode == 0, said.decode()
    assert asked == [3, 1]


@pytest.mark.parametrize("together", [True, False])
async def test_the_blocking_client_keeps_its_connection(together: bool) -> None:
    connections = 0
    image = grey_png(1)
    content = b'{"model": "digits", "version": 1, "results": []}'

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(len(image))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content))
                for piece in (content,) if together else (content[:9], content[9:]):
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0 if together else 0.05)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        with Client("http://{}:{}".format(*server.sockets[0].getsockname())) as client:
            for _ in range(3):
                assert (await asyncio.to_thread(client.classify, image)).version == 1
    assert connections == 1
    watches = [each for each in threading.enumerate() if isinstance(each, threading.Timer)]
    assert all(each.finished.is_set() for each in watches), "one would hang up on a later answer"

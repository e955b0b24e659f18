"""The Python client: the same over HTTP and gRPC, sync and async; and when it tries again."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from serving.client import AsyncClient, AsyncGrpcClient, Client, GrpcClient, Retries, http
from serving.client.retries import repeated
from serving.errors import (
    BadImage,
    DeadlineExceeded,
    Internal,
    InvalidInput,
    NotFound,
    Overloaded,
    PermissionDenied,
    RateLimited,
    SluiceError,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from serving.main import Running
from serving.prediction import Prediction
from tests.doors.conftest import Live
from tests.doors.replica import ScriptedReplica
from tests.support.fake_replica import Refusal
from tests.support.http import grey_png
from tests.support.pictures import gradient


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
        # Over HTTP a request of which every image failed fails; over gRPC each result says so.
        with pytest.raises(BadImage):
            http.classify(b"no image")
        assert isinstance(rpc.classify(b"no image").results[0].error, BadImage)


async def test_the_async_clients_try_again_while_it_may_help(
    replica: ScriptedReplica, gateway: tuple[Running, httpx.AsyncClient]
) -> None:
    running, _ = gateway
    failures = 0

    async def fail_twice(_request: Any) -> None:
        nonlocal failures
        failures += 1
        if failures <= 2:
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    quick = Retries(first_pause_s=0.01)
    replica.before_predict = fail_twice
    for client in (
        AsyncClient(running.http_url, retries=quick),
        AsyncGrpcClient(running.grpc_address, retries=quick),
    ):
        failures = 0
        found = await client.classify(grey_png(200))
        assert found.results[0].classes[0].label == "class-7"
        assert failures == 3
        await client.aclose()
    failures = -1000
    replica.before_predict = lambda _: refuse()
    for once in (
        AsyncClient(running.http_url, retries=Retries(attempts=1)),
        AsyncGrpcClient(running.grpc_address, retries=Retries(attempts=1)),
    ):
        with pytest.raises(Overloaded) as refused:
            await once.classify(grey_png(1))
        assert refused.value.retry_after_s
        await once.aclose()


async def refuse() -> None:
    await asyncio.sleep(0)
    raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://localhost", "http://", "http://localhost:http", ""])
def test_what_is_no_address_is_said_at_once(url: str) -> None:
    with pytest.raises(InvalidInput, match=f'"{url}" is no address of a gateway'):
        Client(url)


@pytest.mark.parametrize("kind", [AsyncClient, AsyncGrpcClient])
def test_an_async_client_may_be_made_before_there_is_a_loop(live: Live, photograph: bytes, kind: Any) -> None:
    client = kind(live.http_url if kind is AsyncClient else live.grpc_address)

    async def ask() -> Prediction:
        async with client:
            found: Prediction = await client.classify(photograph)
            return found

    assert asyncio.run(ask()).version == live.version


@pytest.mark.parametrize("kind", [Client, GrpcClient])
def test_what_can_never_be_asked_is_said_before_anything_is_sent(kind: Any) -> None:
    with kind() as client:
        with pytest.raises(InvalidInput, match="a version or a label needs a model"):
            client.classify(b"x", version=1)
        with pytest.raises(InvalidInput, match="a version or a label needs a model"):
            client.classify(b"x", label="stable")
        for empty in ({"model": ""}, {"model": "digits", "label": ""}):
            with pytest.raises(InvalidInput, match="the name of a model, or a label, is empty"):
                client.classify(b"x", **empty)
        with pytest.raises(InvalidInput, match="there is no image; give at least one"):
            client.classify([])
        for timeout_s in (float("inf"), float("nan"), 1e12):
            with pytest.raises(InvalidInput, match=r"timeout_s is .*; it is a number of seconds, a year"):
                client.classify(b"x", timeout_s=timeout_s)


def test_no_version_over_grpc_stands_for_another() -> None:
    with GrpcClient() as client:
        with pytest.raises(InvalidInput, match="version is 0, which over gRPC stands for the routed one"):
            client.classify(b"x", model="digits", version=0)
        with pytest.raises(InvalidInput, match=r"cannot be asked over gRPC: .*out of range"):
            client.classify(b"x", model="digits", version=2**63)


def test_images_are_any_bytes(live: Live, photograph: bytes) -> None:
    with Client(live.http_url) as http, GrpcClient(live.grpc_address) as rpc:
        for client in (http, rpc):
            for image in (bytearray(photograph), memoryview(photograph)):
                assert client.classify(image).version == live.version


@pytest.mark.parametrize("client", [Client, GrpcClient])
@pytest.mark.parametrize(
    ("images", "not_this"),
    [
        ("seven.png", r"str; Path\(\.\.\.\) reads a file"),
        (["seven.png"], r"str; Path\(\.\.\.\) reads a file"),
        ([3], "int"),
        (None, "NoneType"),
        (gradient(8, 8, "L"), "Image"),
        ([gradient(8, 8, "L")], "Image"),
        (np.zeros((8, 8), np.uint8), "ndarray"),
        # Its lines are bytes, too.
        (io.BytesIO(b"an\nimage"), r"BytesIO; its read\(\) gives bytes"),
    ],
)
def test_what_is_no_image_is_said_before_anything_is_sent(client: Any, images: Any, not_this: str) -> None:
    expected = f"^an image is an encoded file, as bytes or a Path, not {not_this}$"
    with client() as asked, pytest.raises(InvalidInput, match=expected):
        asked.classify(images)


def test_images_may_come_from_a_generator(live: Live, photograph: bytes) -> None:
    images: Any = (photograph for _ in range(2))
    with Client(live.http_url) as client:
        assert len(client.classify(images).results) == 2


def test_a_url_is_no_address_of_grpc() -> None:
    with pytest.raises(InvalidInput, match="is a URL; a gRPC address is HOST:PORT"):
        GrpcClient("http://127.0.0.1:9000")


@pytest.mark.parametrize("kind", [Client, AsyncClient, GrpcClient, AsyncGrpcClient])
@pytest.mark.parametrize("key", ["s3cret\n", "two s3cret", "s3crét", "s3cret\x7f"])
def test_what_cannot_be_a_key_is_said_without_it(kind: Any, key: str) -> None:
    with pytest.raises(InvalidInput, match="the API key has a character that none has") as refused:
        kind(api_key=key)
    assert "s3cr" not in refused.value.message


def test_a_grpc_port_is_told_from_nobody(live: Live, photograph: bytes) -> None:
    with (
        Client(f"http://{live.grpc_address}", retries=Retries(attempts=1)) as client,
        pytest.raises(Unavailable, match=r"does not speak HTTP .*; is it a gRPC port\?"),
    ):
        client.classify(photograph)


async def test_each_attempt_over_grpc_is_a_connection() -> None:
    """gRPC's own pause between connections would fail most of the attempts unsent."""
    connections = 0

    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        async with AsyncGrpcClient(f"{host}:{port}", retries=Retries(attempts=4)) as client:
            with pytest.raises(Unavailable):
                await client.classify(b"x")
    assert connections >= 4


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


@asynccontextmanager
async def answering(answer: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[str]:
    """A server that answers as a test says once the head of a request has come; its address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            await answer(writer)
            await reader.read()  # until the client leaves
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield "http://{}:{}".format(*server.sockets[0].getsockname())


async def asked(
    kind: type[Client | AsyncClient], url: str, timeout_s: float = 60.0, images: Sequence[bytes] = ()
) -> Prediction:
    """What a client of this kind is answered, once; it asks of a small image unless others are given."""
    once = Retries(attempts=1)
    images = images or [grey_png(1)]
    if issubclass(kind, AsyncClient):
        async with kind(url, retries=once) as client:
            return await client.classify(images, timeout_s=timeout_s)
    with kind(url, retries=once) as blocking:
        return await asyncio.to_thread(blocking.classify, images, timeout_s=timeout_s)


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


async def without_length(writer: asyncio.StreamWriter) -> None:
    """Answer without saying how much, and then no more."""
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n{}")
    await writer.drain()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("answer", [silent, slow, without_length])
async def test_a_deadline_that_passes_is_told_as_one(kind: Any, answer: Any) -> None:
    async with answering(answer) as url:
        with pytest.raises(DeadlineExceeded, match=r"did not answer within 0\.\d+ s"):
            await asked(kind, url, timeout_s=0.2)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_the_gateways_own_word_on_a_deadline_is_waited_for(
    replica: ScriptedReplica, up: Running, kind: Any
) -> None:
    async def hang(_request: Any) -> None:
        await asyncio.Event().wait()

    replica.before_predict = hang
    with pytest.raises(DeadlineExceeded, match="the request's deadline passed before its answer"):
        await asked(kind, up.http_url, timeout_s=0.3)


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


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    "content",
    [
        b"<html>Welcome!</html>",
        b"",
        b"[]",
        b'{"model": "digits"}',
        b'{"model": "digits", "version": 1, "results": 3}',
        b'{"model": "digits", "version": 1, "results": [{}]}',
        b'{"model": "digits", "version": 1, "results": [{"classes": [{"name": "seven"}]}]}',
        b'{"model": "digits", "version": 1, "results": [{"error": "bad-image"}]}',
    ],
)
async def test_what_no_gateway_answers_is_told_as_that(kind: Any, content: bytes) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
        await writer.drain()

    async with answering(answer) as url:
        with pytest.raises(Internal, match="answered 200, but with no prediction; is it a gateway of Sluice"):
            await asked(kind, url)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, Unauthenticated),
        (403, PermissionDenied),
        (413, TooLarge),
        (429, RateLimited),
        (500, Internal),
        (502, Unavailable),
        (503, Unavailable),
        (504, Unavailable),
    ],
)
async def test_what_a_proxy_answers_is_told_by_its_status(
    kind: Any, status: int, error: type[SluiceError]
) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 %d No\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\n<p/>" % status)
        await writer.drain()

    async with answering(answer) as url:
        with pytest.raises(error, match=f"answered {status}") as refused:
            await asked(kind, url)
        assert refused.value.retry_after_s == 7


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_a_gateway_that_hangs_up_is_not_taken_for_a_grpc_port(kind: Any) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0)
        writer.close()

    async with answering(answer) as url:
        with pytest.raises(Unavailable, match="no gateway answers at"):
            await asked(kind, url)


def test_those_who_were_refused_together_do_not_come_back_together(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)

    def refuse(_timeout_s: float) -> None:
        raise RateLimited("x", retry_after_s=2)

    with pytest.raises(RateLimited):
        repeated(Retries(attempts=50), 3.1, refuse)
    assert len(pauses) == 49
    assert len(set(pauses)) > 40
    assert min(pauses) >= 2.0
    assert max(pauses) < 3.1


@pytest.mark.parametrize(
    ("error", "attempt", "left_s", "pause_s"),
    [
        (Unavailable("x"), 1, 60, 0.2),
        (Unavailable("x"), 3, 60, 0.8),
        (Unavailable("x"), 4, 60, None),
        (RateLimited("x", retry_after_s=3), 1, 60, 3),
        (RateLimited("x", retry_after_s=3), 1, 2, None),
        (RateLimited("x", retry_after_s=3600), 1, 9999, None),
        (Unavailable("x", retry_after_s=-1), 1, 60, 0),
        (NotFound("x"), 1, 60, None),
    ],
)
def test_when_to_try_again(error: SluiceError, attempt: int, left_s: float, pause_s: float | None) -> None:
    assert Retries().pause_s(error, attempt, left_s) == pause_s


def test_one_may_try_again_without_end() -> None:
    often = Retries(attempts=1_000_000, first_pause_s=0.001, longest_pause_s=0.5)
    assert often.pause_s(Unavailable("x"), 999_999, 60) == 0.5


@pytest.mark.parametrize(
    "wrong", [{"attempts": 0}, {"first_pause_s": -1.0}, {"longest_pause_s": float("nan")}]
)
def test_what_cannot_be_tried_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(
        InvalidInput, match=r"cannot be; there is one attempt at least, and no pause is below 0"
    ):
        Retries(**wrong)

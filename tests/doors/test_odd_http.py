"""What odd but legal HTTP clients send: offers of other protocols, many requests at once, HTTP/1.0, HEAD."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.main import Running
from serving.rest import connection
from serving.rest.connection import STEP_BYTES, Connection
from serving.rest.server import HttpServer, listen
from serving.rest.unread import Unread
from serving.settings import Settings
from tests.doors.wire import exchange, port_of, statuses
from tests.support.fake_replica import until
from tests.support.http import grey_png

PATH = b"/v1/models/digits:classify"
CLOSE = b"Connection: close\r\n"
# As Java's HttpClient sends it with each request over plain HTTP, and `curl --http2`.
OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\nUpgrade: h2c\r\n"


def post(body: bytes, headers: bytes = b"") -> bytes:
    """A request to classify an image."""
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n"
    return head % (PATH, len(body)) + headers + b"\r\n" + body


@asynccontextmanager
async def served(app: ASGIApp) -> AsyncIterator[tuple[HttpServer, int]]:
    """A server of an app of the test's own, and its port."""
    listener = listen("127.0.0.1", 0)
    server = HttpServer(app, Settings(), None, Unread(Settings().max_in_flight_bytes))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    yield server, listener.getsockname()[1]
    for task in tuple(server.server_state.tasks):
        task.cancel()
    server.should_exit = True
    await serving


def labels_in(answers: bytes) -> list[str]:
    """The best label of each answer in a connection's bytes."""
    bodies = [part.partition(b"\r\n\r\n")[2] for part in answers.split(b"HTTP/1.1 ")[1:]]
    return [json.loads(body)["results"][0]["classes"][0]["label"] for body in bodies]


async def test_who_has_connected_as_the_server_shuts_down_is_answered_and_who_comes_later_refused() -> None:
    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    listener = listen("127.0.0.1", 0)
    server = HttpServer(app, Settings(), None, Unread(Settings().max_in_flight_bytes))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await until(lambda: server.started)
    address = listener.getsockname()
    with socket.create_connection(address) as client:  # by the kernel alone: the event loop has no turn
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        client.setblocking(False)
        ending = asyncio.create_task(server.drain(listener))
        async with asyncio.timeout(20):
            answer = await asyncio.get_running_loop().sock_recv(client, 1000)
    assert answer.startswith(b"HTTP/1.1 204")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    await ending
    await serving


async def test_an_offer_of_another_protocol_is_ignored_and_costs_no_body(
    gateway: tuple[Running, httpx.AsyncClient], capfd: pytest.CaptureFixture[str]
) -> None:
    running, _ = gateway
    chunked = post(b"", OFFER).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(grey_png(90)), grey_png(90))
    answers = await exchange(
        port_of(running),
        post(grey_png(200), OFFER) + chunked + chunks + post(grey_png(30), OFFER) + post(grey_png(9), CLOSE),
    )
    assert statuses(answers) == [200] * 4, answers
    assert labels_in(answers) == ["class-7", "class-3", "class-1", "class-0"]
    assert capfd.readouterr().err == ""


async def test_the_body_of_an_offer_is_never_taken_for_a_request(
    gateway: tuple[Running, httpx.AsyncClient],
) -> None:
    """Else it would be one that no proxy in front has seen."""
    running, _ = gateway
    hidden = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(running))
    writer.write(post(hidden, OFFER)[: -len(hidden)])
    await writer.drain()
    await exchange(
        port_of(running), b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n"
    )  # the head came first
    writer.write(hidden + b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n")
    async with asyncio.timeout(60):
        assert statuses(await reader.read()) == [400, 200]  # the body is no image
    writer.close()


async def test_requests_sent_ahead_of_answers_wait_unread_and_are_all_answered() -> None:
    """One that is read and waits takes seventy times its bytes."""
    began, go = 0, asyncio.Event()

    async def answer(scope: Scope, _receive: Receive, send: Send) -> None:
        nonlocal began
        began += 1
        if began > 3:
            await go.wait()
        body = scope["path"].encode()
        length = (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": body})

    sent = b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(8_000))
    last = b"GET /last HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n"
    async with served(answer) as (server, port):
        answers = asyncio.create_task(exchange(port, sent + last))
        await until(lambda: began == 4)
        (connection,) = server.server_state.connections
        assert isinstance(connection, Connection)
        assert len(connection.pipeline) < 1000
        go.set()
        bodies = [part.partition(b"\r\n\r\n")[2] for part in (await answers).split(b"HTTP/1.1 200 OK")[1:]]
    assert bodies == [*(b"/%d" % number for number in range(8_000)), b"/last"]


async def told(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that answers with what it was asked."""
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message["body"])
        more = message["more_body"]
    body = b"%s %s %d" % (scope["method"].encode(), scope["raw_path"], size)
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


@pytest.mark.parametrize("piece_bytes", [13, 1000, STEP_BYTES + 1, 10**6])
async def test_requests_are_the_same_however_their_bytes_are_cut(piece_bytes: int) -> None:
    sent, expected = b"", []
    for number, size in enumerate((0, 5, 300, 20_000, 1, 0, 3000, 0, 0, 17) * 3):
        body, head = b"x" * size, b"Host: x\r\n" + (OFFER if number % 2 else b"")
        if number % 3 and size:
            head, body = head + b"Transfer-Encoding: chunked\r\n", b"%x\r\n%s\r\n0\r\n\r\n" % (size, body)
        else:
            head += b"Content-Length: %d\r\n" % size
        sent += b"POST /%d HTTP/1.1\r\n" % number + head + b"\r\n" + body
        expected.append(b"POST /%d %d" % (number, size))
    sent += b"GET /last HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n"
    async with served(told) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for start in range(0, len(sent), piece_bytes):
            writer.write(sent[start : start + piece_bytes])
            await asyncio.sleep(0)  # the server, on the same loop, reads what has come
        async with asyncio.timeout(60):
            answers = await reader.read()
        writer.close()
    bodies = [part.partition(b"\r\n\r\n")[2] for part in answers.split(b"HTTP/1.1 200 OK")[1:]]
    assert bodies == [*expected, b"GET /last 0"]


async def test_headers_that_come_while_another_request_is_answered_have_their_limit() -> None:
    """The parser copies all of a header for each piece of it: 26 MB of one took the event loop 13 seconds."""

    async def never(_scope: Scope, _receive: Receive, _send: Send) -> None:
        await asyncio.Event().wait()

    request = b"GET / HTTP/1.1\r\nHost: x\r\n"
    async with served(never) as (_, port):
        answer = await exchange(port, request + b"\r\n" + request + b"X: " + b"a" * 10**6)
    assert statuses(answer) == [431]


async def test_a_refusal_behind_waiting_requests_reaches_a_client_that_still_sends() -> None:
    began = []

    async def never(scope: Scope, _receive: Receive, _send: Send) -> None:
        began.append(scope["path"])
        await asyncio.Event().wait()

    requests = b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(3))
    async with served(never) as (_, port):
        assert statuses(await exchange(port, requests + b"NONSENSE\r\n\r\n" + b"x" * 8 * 2**20)) == [400]
    assert began == ["/0"]


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/metrics", "/v1/models", "/", "/v1/models/digits", "/v2"]
)
async def test_head_is_answered_as_get_is_without_the_body(client: httpx.AsyncClient, path: str) -> None:
    whole, head = await client.get(path), await client.head(path)
    assert (whole.status_code, head.status_code, head.content) == (200, 200, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]
    assert int(head.headers["content-length"]) > 0


@pytest.mark.parametrize("path", ["/healthz/", "/v1/rollouts/"])
async def test_nothing_is_redirected(client: httpx.AsyncClient, path: str) -> None:
    """It would be to `http://`, with the key, where a proxy in front speaks HTTPS."""
    answer = await client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


async def test_lines_for_http_1_0_are_not_chunked(gateway: tuple[Running, httpx.AsyncClient]) -> None:
    running, _ = gateway
    sent = post(grey_png(200), b"Accept: application/x-ndjson\r\n").replace(b"HTTP/1.1", b"HTTP/1.0")
    head, _, body = (await exchange(port_of(running), sent)).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"content-type: application/x-ndjson" in head
    assert json.loads(body)["classes"][0]["label"] == "class-7"


@pytest.mark.parametrize(("version", "first"), [(b"1.0", b"HTTP/1.1 200"), (b"1.1", b"HTTP/1.1 100")])
async def test_a_client_of_http_1_0_is_not_told_to_continue(
    gateway: tuple[Running, httpx.AsyncClient], version: bytes, first: bytes
) -> None:
    """It would take that for its answer."""
    running, _ = gateway
    sent = post(grey_png(200), b"Expect: 100-continue\r\n" + CLOSE).replace(b"HTTP/1.1", b"HTTP/" + version)
    assert (await exchange(port_of(running), sent)).startswith(first)


BEHIND = b"GET /2 HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("behind", [b"", BEHIND], ids=["alone", "with another that waits"])
async def test_no_refusal_is_told_inside_an_answer_that_has_begun(behind: bytes) -> None:
    """It would be read as a part of that."""
    told, ended = asyncio.Event(), asyncio.Event()

    async def answer(_scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        told.set()
        await send({"type": "http.response.body", "body": b"x" * 995})
        ended.set()

    async with served(answer) as (_, port), asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"begun")
        writer.write(behind + b"NONSENSE\r\n\r\n")
        assert await reader.read() == b""
        await told.wait()
        await ended.wait()
        writer.close()


@pytest.mark.parametrize("behind", [b"", BEHIND], ids=["alone", "with another that waits"])
async def test_nothing_is_answered_behind_a_refusal(behind: bytes, caplog: pytest.LogCaptureFixture) -> None:
    go_on, sent = asyncio.Event(), asyncio.Event()

    async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
        await go_on.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        sent.set()

    async with served(answer) as (_, port), asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + behind + b"NONSENSE\r\n\r\n")
        refusal = await reader.read()  # to its end: for a while the other half stays open
        go_on.set()
        await sent.wait()
        writer.close()
    head = refusal.partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert statuses(refusal) == [400]
    assert {b"content-type: application/problem+json", b"connection: close"} <= set(head)
    assert caplog.text == ""


async def test_that_a_client_has_left_is_told_to_the_request_in_progress_though_another_waits() -> None:
    began, told = asyncio.Event(), asyncio.Event()

    async def stream(_scope: Scope, receive: Receive, send: Send) -> None:
        async def left() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        await send({"type": "http.response.start", "status": 200, "headers": []})
        leaving = asyncio.create_task(left())
        began.set()
        while not leaving.done():
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await asyncio.sleep(0.01)
        told.set()

    async with served(stream) as (_, port), asyncio.timeout(20):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(BEHIND + BEHIND)
        await began.wait()
        writer.transport.abort()
        await told.wait()


async def refused_who_sends_on(port: int, pieces: int) -> tuple[bytes, int]:
    """What a client reads in the end that has been refused, and how many pieces it could send on."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"NONSENSE\r\n\r\n")
    refusal, sent = await reader.readuntil(b"\r\n\r\n"), 0
    try:
        for _ in range(pieces):
            await asyncio.sleep(0.02)
            writer.write(b"x" * 1000)
            await writer.drain()
            sent += 1
    except ConnectionError:
        pass
    finally:
        writer.close()
    return refusal, sent


async def test_who_still_sends_is_listened_to_for_a_while_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "LINGER_S", 0.4)
    async with served(told) as (_, port), asyncio.timeout(60):
        refusal, sent = await refused_who_sends_on(port, 50)
        assert (statuses(refusal), sent) == ([400], 50)
        monkeypatch.setattr(connection, "MOST_LINGER_S", 0.4)
        refusal, sent = await refused_who_sends_on(port, 1000)
        assert statuses(refusal) == [400]
        assert sent < 1000

"""What the outermost layer does around answers: bodies that nobody wants any more, faults, lost clients."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send
from structlog.testing import capture_logs

from serving.errors import NotFound
from serving.main import Running
from serving.rest import boundary
from serving.rest.boundary import Boundary
from serving.rest.leaving import Client
from tests.doors.wire import exchange, port_of, statuses


def asked(*headers: tuple[bytes, bytes], **state: Any) -> Scope:
    """A request."""
    return {
        "type": "http", "http_version": "1.1", "method": "POST", "path": "/", "headers": list(headers),
        "state": state,
    }  # fmt: skip


async def refuse(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise NotFound("there is nothing here")


async def sent_of(
    scope: Scope,
    receive: Callable[[], Awaitable[Message]],
    app: Any = refuse,
    *,
    draining: bool = False,
    sent: list[Message] | None = None,
) -> list[Message]:
    """What is sent to a request, in its order."""
    found: list[Message] = [] if sent is None else sent

    async def send(message: Message) -> None:
        found.append(message)

    async with asyncio.timeout(5):
        await Boundary(app, lambda: draining)(scope, receive, send)
    return found


async def nothing() -> Message:
    """What a client sends that waits for the answer."""
    await asyncio.Event().wait()
    raise AssertionError


async def test_a_client_that_holds_its_body_back_is_not_left_with_a_connection_in_the_middle_of_it(
    gateway: tuple[Running, httpx.AsyncClient],
) -> None:
    """It may send the next request in the body's place (RFC 9110, 10.1.1)."""
    running, _ = gateway
    head = b"POST /v1/nothing HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    answers = await exchange(port_of(running), head)
    assert statuses(answers) == [404]
    assert b"\r\nconnection: close\r\n" in answers


async def test_as_the_gateway_shuts_down_the_rest_of_a_small_body_is_read_too() -> None:
    left = [b"a", b"b", b"c"]
    left_at: list[int] = []
    sent: list[Message] = []

    async def receive() -> Message:
        left_at.append(len(sent))
        piece = left.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(left)}

    await sent_of(asked((b"content-length", b"3")), receive, draining=True, sent=sent)
    start, body, end = sent
    assert (b"connection", b"close") in start["headers"]
    assert (b"nothing here" in body["body"], body["more_body"]) == (True, True)
    assert end == {"type": "http.response.body", "body": b""}
    assert (left, left_at) == ([], [2, 2, 2])


@pytest.mark.parametrize("piece_bytes", [1, 4])
async def test_of_a_refused_body_only_so_much_is_read(
    piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boundary, "LINGER_BYTES", 12)
    read_bytes = 0

    async def receive() -> Message:
        nonlocal read_bytes
        await asyncio.sleep(0)
        read_bytes += piece_bytes
        return {"type": "http.request", "body": b"x" * piece_bytes, "more_body": True}

    *_, end = await sent_of(asked(), receive)
    assert end == {"type": "http.response.body", "body": b""}
    assert read_bytes == 12


async def test_a_client_that_sends_ever_more_of_a_refused_body_has_so_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(boundary, "LINGER_S", 0.1)

    async def receive() -> Message:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    *_, end = await sent_of(asked(), receive)
    assert end == {"type": "http.response.body", "body": b""}


async def test_a_client_that_says_no_more_of_a_refused_body_has_its_answer_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(boundary, "LINGER_IDLE_S", 0.01)
    *_, end = await sent_of(asked(), nothing)
    assert end == {"type": "http.response.body", "body": b""}


async def test_a_fault_is_told_without_its_text_and_logged_with_the_request_it_was() -> None:
    async def faulty(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise RuntimeError("a secret")

    with capture_logs() as lines:
        start, body = await sent_of(asked((b"x-request-id", b"job-7"), body_here=True), nothing, faulty)
    assert start["status"] == 500
    assert b"the request failed unexpectedly; the log says how" in body["body"]
    assert b"secret" not in body["body"]
    assert [(line["log_level"], line["request_id"]) for line in lines] == [("error", "job-7")]


async def test_a_fault_in_the_middle_of_an_answer_ends_it() -> None:
    """A second answer inside it would be taken for a part of it."""

    async def faulty(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise NotFound("half of it is gone")

    sent: list[Message] = []
    with pytest.raises(NotFound):
        await sent_of(asked(body_here=True), nothing, faulty, sent=sent)
    assert [message["status"] for message in sent] == [200]


async def test_the_request_of_a_client_who_has_left_ends_without_a_fault() -> None:
    client = Client()
    client.leave()

    async def cancelled(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise asyncio.CancelledError

    assert await sent_of(asked(client=client), nothing, cancelled, draining=True) == []

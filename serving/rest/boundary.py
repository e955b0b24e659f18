"""The outermost layer of the HTTP API: request ids, traces, errors as answers, and leaving politely."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import Internal, SluiceError
from serving.rest.context import headers_of
from serving.rest.errors import problem
from serving.rest.leaving import client_of
from serving.tracing import child_of, request_id_from

_log = structlog.get_logger()

# How much of a refused body is read and thrown away, so that the client gets to read the answer: closing a
# connection on unread bytes makes TCP reset it, and the answer is lost (RFC 9112, 9.6).
LINGER_BYTES = 64 * 2**20
LINGER_S = 10.0
# A client that sends nothing for this long has sent all, or is waiting for the answer.
LINGER_IDLE_S = 1.0


# A refused body up to this size may come while the answer goes out, and the connection stays as it is:
# closing it would cost both sides more, just when many are refused.
SMALL_BYTES = 2**20


class Boundary:
    """ASGI middleware around the whole app.

    Args:
        app: the app.
        draining: whether the gateway is shutting down; connections are then closed after their answer.
        traces_share: how many of the traces that begin here are recorded, 0 to 1.
    """

    def __init__(self, app: ASGIApp, draining: Callable[[], bool], traces_share: float = 0.0) -> None:
        self._app = app
        self._draining = draining
        self._traces_share = traces_share

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; every exception becomes an answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        headers = headers_of(scope)
        request_id = state["request_id"] = request_id_from(headers.get("x-request-id", ""))
        trace = state["trace"] = child_of(headers.get("traceparent", ""), self._traces_share)
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    (b"traceparent", trace.traceparent.encode()),
                ]
                if self._draining():
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            try:
                await self._app(scope, receive, send_with_headers)
            except Exception as error:
                if started:
                    raise
                if not isinstance(error, SluiceError):
                    _log.exception("a request failed in an unforeseen way", request_id=request_id)
                    error = Internal("the request failed in an unforeseen way; the log says how")
                await _refuse(error, request_id, scope, receive, send_with_headers)
        except asyncio.CancelledError:
            client = client_of(scope)
            if client is None or not client.left:
                raise  # else nobody is there to be answered


async def _refuse(error: SluiceError, request_id: str, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer in the form of the door that was taken, and let the client read it even while it still sends."""
    unread = not scope["state"].get("body_read", False) and not _is_small(scope)

    async def send_lingering(message: Message) -> None:
        if not unread:
            await send(message)
        elif message["type"] == "http.response.start":
            await send({**message, "headers": [*message["headers"], (b"connection", b"close")]})
        else:
            await send({**message, "more_body": True})
            await _discard(receive)
            await send({"type": "http.response.body", "body": b""})

    in_form = scope["state"].get("error_form", problem)
    await in_form(error, request_id)(scope, receive, send_lingering)


def _is_small(scope: Scope) -> bool:
    """Whether the body is known to be small, and to be on its way."""
    headers = headers_of(scope)
    length = headers.get("content-length", "")
    known = length.isascii() and length.isdigit() and int(length) <= SMALL_BYTES
    return known and not headers.get("expect")


async def _discard(receive: Receive) -> None:
    """Read the rest of the body and throw it away, as long as the client sends and within the limits."""
    left = LINGER_BYTES
    latest = time.monotonic() + LINGER_S
    with contextlib.suppress(TimeoutError):
        while left > 0:
            async with asyncio.timeout(min(LINGER_IDLE_S, latest - time.monotonic())):
                message = await receive()
            if message["type"] != "http.request" or not message.get("more_body", False):
                return
            left -= len(message.get("body", b""))

"""The outermost layer of the HTTP API: request ids, problem documents, and leaving politely."""

from __future__ import annotations

import asyncio
import contextlib
import re
import uuid
from collections.abc import Callable

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import Internal, SluiceError
from serving.rest.errors import problem

_log = structlog.get_logger()

# What may be taken from a caller into logs and answers as it stands.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")

# How much of a refused body is read and thrown away, so that the client gets to read the answer: closing a
# connection on unread bytes makes TCP reset it, and the answer is lost (RFC 9112, 9.6).
LINGER_BYTES = 64 * 2**20
LINGER_S = 2.0


class Boundary:
    """ASGI middleware around the whole app.

    Args:
        app: the app.
        draining: whether the gateway is shutting down; connections are then closed after their answer.
    """

    def __init__(self, app: ASGIApp, draining: Callable[[], bool]) -> None:
        self._app = app
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; every exception becomes an answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope.setdefault("state", {})["request_id"] = take_request_id(scope)
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
                if self._draining():
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:
            if started:
                raise
            if not isinstance(error, SluiceError):
                _log.exception("a request failed in an unforeseen way", request_id=request_id)
                error = Internal("the request failed in an unforeseen way; the log says how")
            await _refuse(error, request_id, scope, receive, send_with_headers)


def take_request_id(scope: Scope) -> str:
    """The caller's `X-Request-ID` if it is a sane one, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text = str(value, "latin-1")
            if _REQUEST_ID.fullmatch(text):
                return text
    return uuid.uuid4().hex


async def _refuse(error: SluiceError, request_id: str, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with a problem document, and let the client read it even if it is still sending."""
    unread = not scope["state"].get("body_read", False)

    async def send_lingering(message: Message) -> None:
        if not unread:
            await send(message)
        elif message["type"] == "http.response.start":
            await send({**message, "headers": [*message["headers"], (b"connection", b"close")]})
        else:
            await send({**message, "more_body": True})
            await _discard(receive)
            await send({"type": "http.response.body", "body": b""})

    await problem(error, request_id)(scope, receive, send_lingering)


async def _discard(receive: Receive) -> None:
    """Read the rest of the body and throw it away, up to `LINGER_BYTES` and `LINGER_S`."""
    left = LINGER_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while left > 0:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
                left -= len(message.get("body", b""))

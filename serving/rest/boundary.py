"""The outermost layer of the HTTP API: request ids, traces, errors as answers, and lingering closes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import Internal, SluiceError, Unavailable, without_frames
from serving.rest.context import headers_of
from serving.rest.errors import problem
from serving.rest.leaving import client_of
from serving.telemetry.tracing import child_of, request_id_from

_log = structlog.get_logger()

# How much of a refused body is read and thrown away, so that the client gets to read the answer: closing a
# connection on unread bytes makes TCP reset it, and the answer is lost (RFC 9112, 9.6).
LINGER_BYTES = 64 * 2**20
LINGER_S = 10.0
# A client that sends nothing for this long has sent everything, or is waiting for the answer.
LINGER_IDLE_S = 1.0

# After a shutdown: another gateway is there at once, or this one is back soon.
RETRY_AFTER_S = 1.0

# With a refused body of up to this size the connection stays open, while the rest of the body comes in:
# closing it would cost both sides more, just when many are refused.
MOST_KEPT_OPEN_BYTES = 2**20

# What is written to a connection in one turn: it encrypts or copies all of that at once, and others wait.
MOST_AT_ONCE_BYTES = 2**20


class Boundary:
    """ASGI middleware around the whole app.

    Args:
        app: the app.
        draining: whether the gateway is shutting down; connections are then closed after their answer.
        traces_share: share of the traces that begin here that is sampled, 0 to 1.
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
        state["trace"] = child_of(headers.get("traceparent", ""), self._traces_share)
        answer = _Answer(scope, receive, send, self._draining)

        async def tell(error: SluiceError) -> None:
            in_form = state.get("error_form", problem)  # of the API that was called
            await in_form(without_frames(error), request_id)(scope, receive, answer.send)

        try:
            try:
                await self._app(scope, receive, answer.send)
            except Exception as error:
                if answer.started:
                    raise
                if not isinstance(error, SluiceError):
                    _log.exception("a request failed unexpectedly", request_id=request_id)
                    error = Internal("the request failed unexpectedly; the log says how")
                await tell(error)
        except asyncio.CancelledError:
            client = client_of(scope)
            if client is not None and client.left:
                return  # there is nobody to answer
            if answer.started or not self._draining():
                raise
            # The drain timeout has passed, and uvicorn cancels what is left.
            await tell(
                Unavailable("the gateway shut down before it had answered", retry_after_s=RETRY_AFTER_S)
            )


class _Answer:
    """The answer to one request: with its ids, and sent so that a client still sending gets to read it.

    Attributes:
        started: whether any of it has been sent.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, draining: Callable[[], bool]) -> None:
        self._scope, self._receive, self._send, self._draining = scope, receive, send, draining
        self.started = self._lingers = False

    async def send(self, message: Message) -> None:
        """Send a part of it; before the last one, read the rest of the request's body if that is needed."""
        if message["type"] == "http.response.start":
            self.started = True
            message["headers"] = [*message["headers"], *self._headers()]
        elif self._lingers and not message.get("more_body", False):
            await self._send_in_turns({**message, "more_body": True})
            await _discard(self._receive)
            message = {"type": "http.response.body", "body": b""}
        await self._send_in_turns(message)

    async def _send_in_turns(self, message: Message) -> None:
        """Send a part, a large one in pieces, so that other connections get their turn in between."""
        body = message.get("body", b"")
        if len(body) <= MOST_AT_ONCE_BYTES:
            await self._send(message)
            return
        last = (len(body) - 1) // MOST_AT_ONCE_BYTES * MOST_AT_ONCE_BYTES
        for start in range(0, last, MOST_AT_ONCE_BYTES):  # one by one: the client may be slow to read
            piece = body[start : start + MOST_AT_ONCE_BYTES]
            await self._send({**message, "body": piece, "more_body": True})
        await self._send({**message, "body": body[last:]})

    def _headers(self) -> list[tuple[bytes, bytes]]:
        state = self._scope["state"]
        closes = self._draining()
        if not state.get("body_here", False):
            self._lingers = closes or not (_may_stay_open(self._scope) and _is_small(self._scope))
        ids = [
            (b"x-request-id", state["request_id"].encode()),
            (b"traceparent", state["trace"].traceparent.encode()),
        ]
        return [*ids, (b"connection", b"close")] if closes or self._lingers else ids


def _may_stay_open(scope: Scope) -> bool:
    """Whether the client allows the connection to be reused (RFC 9112, 9.3)."""
    asked = headers_of(scope).get("connection", "").lower()
    return scope["http_version"] == "1.1" and "close" not in [option.strip() for option in asked.split(",")]


def _is_small(scope: Scope) -> bool:
    """Whether the body is known to be small, and to be on its way."""
    headers = headers_of(scope)
    length = headers.get("content-length", "")
    known = length.isascii() and length.isdigit() and int(length) <= MOST_KEPT_OPEN_BYTES
    return known and not headers.get("expect")


async def _discard(receive: Receive) -> None:
    """Read the rest of the body and throw it away, while the client sends and within the limits."""
    left = LINGER_BYTES
    latest = time.monotonic() + LINGER_S
    with contextlib.suppress(TimeoutError):
        while left > 0:
            async with asyncio.timeout(min(LINGER_IDLE_S, latest - time.monotonic())):
                message = await receive()
            if message["type"] != "http.request" or not message.get("more_body", False):
                return
            left -= len(message.get("body", b""))

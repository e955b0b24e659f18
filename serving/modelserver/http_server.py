"""The HTTP transport of the REST API and of the metrics page.

uvicorn reads the network on one thread; requests are parsed and answered on a bounded pool of others.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import uvicorn

from serving.modelserver.metrics import Metrics
from serving.modelserver.rest import RestApi, is_api
from serving.tensor_json_writing import error_body

logger = logging.getLogger(__name__)

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]

CORS_HEADERS = [
    (b"Access-Control-Allow-Origin", b"*"),
    (b"Access-Control-Allow-Methods", b"POST, GET"),
    (b"Access-Control-Allow-Headers", b"Content-Type"),
]
ABSOLUTE_FORM = re.compile("^http://[^/]*", re.IGNORECASE)  # the form of a request's target that proxies get
JSON = b"application/json"
BACKLOG = 2048
DEFAULT_METRICS_PATH = "/monitoring/prometheus/metrics"


@dataclass(frozen=True)
class HttpOptions:
    """How the server answers.

    Attributes:
        timeout_s: time limit of a call; None: it has none.
        threads: how many calls are worked on at once.
        has_cors: add CORS headers, and answer OPTIONS.
        metrics_path: where the metrics are; None for nowhere.
    """

    timeout_s: float | None
    threads: int
    has_cors: bool
    metrics_path: str | None


class HttpApp:
    """The ASGI application."""

    def __init__(self, api: RestApi, metrics: Metrics, options: HttpOptions) -> None:
        self._api = api
        self._metrics = metrics
        self._options = options
        self._pool = ThreadPoolExecutor(options.threads, thread_name_prefix="rest")

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        path, query = scope["raw_path"].decode("latin-1"), scope["query_string"].decode("latin-1")
        path = ABSOLUTE_FORM.sub("", path)
        is_metrics = path == self._options.metrics_path
        if query:  # part of the path, as in the original: this API has no query parameters
            path += f"?{query}"
        if is_metrics:
            await self._reply_metrics(send, path)
            return
        if not is_api(path):
            await _reply(send, 404, b"text/plain", b"Not Found")
            return
        extra = CORS_HEADERS if self._options.has_cors else []
        if scope["method"] == "OPTIONS" and self._options.has_cors:
            await _reply(send, 200, JSON, b"", extra)
            return
        body = await _read(receive)
        if body is None:
            return
        call = partial(self._api.answer, scope["method"], path, body, is_gzip=_is_gzip(scope["headers"]))
        status, answer = await self._answer(call)
        await _reply(send, status, JSON, answer, extra)

    async def _reply_metrics(self, send: Send, path: str) -> None:
        wanted = self._options.metrics_path
        if path == wanted:
            await _reply(send, 200, b"text/plain", self._metrics.page().encode())
        else:
            await _reply(send, 400, b"text/plain", f"Unexpected path: {path}. Should be {wanted}".encode())

    async def _answer(self, call: Callable[[], tuple[int, bytes]]) -> tuple[int, bytes]:
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._pool, call)
        try:
            # As in the original, a run that is too late is not stopped, just no longer waited for.
            return await asyncio.wait_for(asyncio.shield(work), self._options.timeout_s)
        except TimeoutError:
            return 504, error_body("Timed out waiting for notification")


def _is_gzip(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request says that its body is compressed."""
    return any(name == b"content-encoding" and b"gzip" in value for name, value in headers)


async def _read(receive: Receive) -> bytes | None:
    """The whole body; None if the client went away first."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _reply(
    send: Send, status: int, content_type: bytes, body: bytes, extra: list[tuple[bytes, bytes]] | None = None
) -> None:
    headers = [(b"Content-Type", content_type), (b"Content-Length", str(len(body)).encode()), *(extra or [])]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _listen(port: int) -> socket.socket:
    """Bind `port` on all interfaces, like the original: for IPv6, too, if there is any; raises OSError."""
    if socket.has_dualstack_ipv6():
        with suppress(OSError):  # it may be switched off all the same
            return socket.create_server(
                ("::", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True
            )
    return socket.create_server(("0.0.0.0", port), backlog=BACKLOG)  # noqa: S104 - as the original


class HttpServer:
    """uvicorn on a thread of its own."""

    def __init__(self, app: HttpApp, port: int) -> None:
        """Bind `port`; raises OSError if it cannot be."""
        self._socket = _listen(port)
        config = uvicorn.Config(
            app,
            http="h11",  # httptools drops the body of a request that offers HTTP/2, as Java's client does
            ws="none",
            log_config=None,
            log_level="error",  # else each such offer is logged
            access_log=False,
            lifespan="off",
            timeout_keep_alive=60,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="rest-server", daemon=True
        )

    @property
    def port(self) -> int:
        """The TCP port that was bound."""
        return int(self._socket.getsockname()[1])

    def start(self) -> None:
        """Start serving calls."""
        self._thread.start()

    def stop(self) -> None:
        """Accept no more calls."""
        self._server.should_exit = True

    def wait_stopped(self, timeout_s: float) -> bool:
        """Wait, after `stop`, for the calls under way. False if some still are after `timeout_s`."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

"""The clients over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson

from serving.client.base import AsyncioClient, BlockingClient
from serving.client.retries import Retries
from serving.client.wire import Question, as_error
from serving.errors import Internal, SluiceError
from serving.gateway_url import authorization, checked, segment, unanswered
from serving.prediction import ClassScore, ImageResult, Prediction

Verify = ssl.SSLContext | bool
"""How the gateway's certificate is checked: httpx's `verify`."""

# How much longer than the gateway a client waits: the gateway's error at the deadline says what took so long.
_GRACE_S = 0.5
# A gateway that does not accept a connection within this is away, and another attempt may reach another one:
# TCP has tried four times by then.
_CONNECT_S = 10.0
# A gateway's node that is gone says nothing. On Linux the kernel ends a connection on which data has not been
# acknowledged, or accepted, for this long (TCP_USER_TIMEOUT, RFC 5482), and probes idle ones; the next
# attempt gets another connection. Without it a request would wait for the rest of its deadline.
_SILENT_MS = 10_000
_ASK_AFTER_S = 5
# How much is written at a time: the deadline is checked in between.
_PIECE_BYTES = 65_536
# For a step that begins when the time is up: 0 would mean not to block at all.
_LEAST_S = 0.001
# The stream of a closed answer. httpx's own refers to the answer, which refers to it and to the request, a
# cycle: its images would stay until the garbage collector runs.
_READ = httpx.ByteStream(b"")

# For errors that do not come from a gateway: from a proxy, which has limits and callers of its own.
_KIND_OF_STATUS = {
    401: "unauthenticated",
    403: "permission-denied",
    413: "too-large",
    429: "rate-limited",
    502: "unavailable",
    503: "unavailable",
    504: "unavailable",
}


@dataclass(frozen=True, slots=True)
class _Request:
    """One request, ready to be sent as often as it takes."""

    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    files: Sequence[tuple[str, tuple[str, bytes, str]]] | None = None

    def arguments(self, timeout_s: float) -> dict[str, Any]:
        """The arguments of httpx's `request`."""
        return {
            "method": "POST",
            "url": self.path,
            "params": self.params,
            "headers": {**self.headers, "x-request-timeout": f"{timeout_s:.3f}"},
            "content": self.content,
            "files": self.files,
            "timeout": httpx.Timeout(timeout_s + _GRACE_S, connect=min(timeout_s, _CONNECT_S)),
        }


def _classify_request(question: Question) -> _Request:
    model, version, label = question.model, question.version, question.label
    path = "/v1/classify" if model is None else f"/v1/models/{segment(model)}"
    if version is not None:
        path += f"/versions/{version}"
    if label is not None:
        path += f"/labels/{segment(label)}"
    if model is not None:
        path += ":classify"
    params = {} if question.top_k is None else {"top_k": str(question.top_k)}
    if len(question.images) == 1 and question.images[0]:  # an empty one would count as no image at all
        headers = {"content-type": "application/octet-stream"}
        return _Request(path, params, headers, content=question.images[0])
    octets = "application/octet-stream"
    return _Request(
        path,
        params,
        files=[("images", (f"{index}", data, octets)) for index, data in enumerate(question.images)],
    )


def _prediction(answer: httpx.Response, content: bytes) -> Prediction:
    """The prediction in an answer; raises the error in it, or Internal if it is not a gateway's answer."""
    if not answer.is_success:
        raise _failure(answer, content)
    try:
        found = orjson.loads(content)
        return Prediction(found["model"], found["version"], tuple(map(_result, found["results"])))
    except (ValueError, KeyError, TypeError) as error:
        text = f"{answer.url} answered {answer.status_code}, but with no prediction; is it a Sluice gateway?"
        raise Internal(text) from error


def _result(found: Mapping[str, Any]) -> ImageResult:
    if "error" in found:
        return ImageResult(error=as_error(found["error"]["type"], found["error"]["detail"]))
    classes = tuple(ClassScore(each["label"], each["index"], each["score"]) for each in found["classes"])
    return ImageResult(classes, prediction_id=found.get("prediction_id", ""))


def _failure(answer: httpx.Response, content: bytes) -> SluiceError:
    """The error in a problem document; anything else, such as a proxy's page, is judged by its status."""
    retry_after_s = None
    with contextlib.suppress(ValueError):
        retry_after_s = float(answer.headers.get("retry-after", ""))
    try:
        found = orjson.loads(content)
        kind = found["type"].rpartition(":")[2]
        return as_error(kind, found["detail"], stage=found.get("stage"), retry_after_s=retry_after_s)
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        kind = _KIND_OF_STATUS.get(answer.status_code, "internal")
        text = f"{answer.url} answered {answer.status_code} {answer.reason_phrase}"
        if answer.has_redirect_location:  # not followed: a key would go where nobody sent it
            text += f"; it points to {answer.headers['location']}"
        return as_error(kind, text, retry_after_s=retry_after_s)


def _watch(event: str, info: Mapping[str, Any]) -> None:
    """Have the kernel detect if the path of a connection, which has just been made, is cut."""
    if event == "connection.connect_tcp.complete" and hasattr(socket, "TCP_USER_TIMEOUT"):
        made = info["return_value"].get_extra_info("socket")
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _ASK_AFTER_S)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _ASK_AFTER_S)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENT_MS)


async def _watch_async(event: str, info: Mapping[str, Any]) -> None:
    _watch(event, info)


def _bound(request: httpx.Request, latest: float) -> None:
    """Have a request end by `latest` (monotonic clock): each of its steps gets what is left of the time.

    httpx limits each step separately, and within a step each system call. It calls `trace` for a step before
    it looks at the step's timeout.
    """
    timeouts = request.extensions["timeout"]

    def trace(event: str, info: Mapping[str, Any]) -> None:
        _watch(event, info)
        if event.endswith(".started"):
            left_s = max(latest - time.monotonic(), _LEAST_S)
            timeouts.update({step: min(most_s, left_s) for step, most_s in timeouts.items()})

    request.extensions["trace"] = trace
    assert isinstance(request.stream, httpx.SyncByteStream)
    request.stream = _Body(request.stream, latest)


class _Body(httpx.SyncByteStream):
    """A body that is written until `latest`; a reader too slow to have it by then is timed out."""

    def __init__(self, body: httpx.SyncByteStream, latest: float) -> None:
        self._body = body
        self._latest = latest

    def __iter__(self) -> Iterator[bytes]:
        for each in self._body:
            for start in range(0, len(each), _PIECE_BYTES):
                if time.monotonic() >= self._latest:
                    raise httpx.WriteTimeout("the request is taken too slowly")
                yield each[start : start + _PIECE_BYTES]


def _read(answer: httpx.Response, latest: float) -> bytes:
    """The body of an answer; httpx.ReadTimeout if it is not here by `latest` (monotonic clock)."""
    # httpx limits the wait for each piece, not for all of them. The first is mostly the only one.
    pieces = answer.iter_bytes()
    first = next(pieces, b"")
    if str(len(first)) == answer.headers.get("content-length"):
        return first + b"".join(pieces)  # no more come, but httpx learns that the connection is free again
    with _hung_up_at(latest, answer):
        return first + b"".join(pieces)


@contextlib.contextmanager
def _hung_up_at(latest: float, answer: httpx.Response) -> Iterator[None]:
    """Close the connection when the time is up, so that the block ends with httpx.ReadTimeout.

    This takes a thread: nothing else can end the block's wait.
    """
    late = threading.Event()
    connection = answer.extensions["network_stream"].get_extra_info("socket")

    def hang_up() -> None:
        late.set()
        with contextlib.suppress(OSError):  # a TLS socket's own `shutdown` is not for another thread's use
            socket.socket.shutdown(connection, socket.SHUT_RDWR)

    timer = threading.Timer(latest - time.monotonic(), hang_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    except httpx.RequestError:
        if not late.is_set():
            raise
    finally:
        timer.cancel()
    if late.is_set():  # what looks like the end of the answer may be our own doing
        raise httpx.ReadTimeout("the answer comes too slowly", request=answer.request)


class Client(BlockingClient[_Request]):
    """A client over HTTP. Threads may share it; a process that is forked makes connections of its own.

    Args:
        url: where the gateway is.
        api_key: the key or token to send; None: none.
        verify: how the gateway's certificate is checked.
        retries: when to send again.

    Raises:
        InvalidInput: the URL or the key is not valid.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        *,
        api_key: str | None = None,
        verify: Verify = True,
        retries: Retries | None = None,
    ) -> None:
        super().__init__(retries)
        self._connect = functools.partial(
            httpx.Client, base_url=checked(url), headers=authorization(api_key), verify=verify
        )
        self._http, self._process = self._connect(), os.getpid()

    def _request(self, question: Question) -> _Request:
        return _classify_request(question)

    def _send(self, request: _Request, timeout_s: float) -> Prediction:
        latest = time.monotonic() + timeout_s + _GRACE_S
        if os.getpid() != self._process:  # on one connection, two processes read each other's answers
            self._http, self._process = self._connect(), os.getpid()
        sent = self._http.build_request(**request.arguments(timeout_s))
        _bound(sent, latest)
        try:
            answer = self._http.send(sent, stream=True)
            try:
                content = _read(answer, latest)
            finally:
                answer.close()
                answer.stream = _READ
        except httpx.RequestError as error:
            raise unanswered(self._http.base_url, error, timeout_s) from error
        return _prediction(answer, content)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


class AsyncClient(AsyncioClient[_Request]):
    """The same for asyncio, in one event loop. Arguments as `Client`'s."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        *,
        api_key: str | None = None,
        verify: Verify = True,
        retries: Retries | None = None,
    ) -> None:
        super().__init__(retries)
        self._http = httpx.AsyncClient(base_url=checked(url), headers=authorization(api_key), verify=verify)

    def _request(self, question: Question) -> _Request:
        return _classify_request(question)

    async def _send(self, request: _Request, timeout_s: float) -> Prediction:
        sent = self._http.build_request(**request.arguments(timeout_s), extensions={"trace": _watch_async})
        try:
            async with asyncio.timeout(timeout_s + _GRACE_S):
                answer = await self._http.send(sent, stream=True)
                try:
                    content = await answer.aread()
                finally:
                    await answer.aclose()
                    answer.stream = _READ
        except (httpx.RequestError, TimeoutError) as error:
            raise unanswered(self._http.base_url, error, timeout_s) from error
        return _prediction(answer, content)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

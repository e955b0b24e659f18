"""What the Python clients send, and how they read what they are answered."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest

from serving import protos
from serving.client import AsyncClient, AsyncGrpcClient, ClassScore, Client, GrpcClient, Prediction, Retries
from serving.client.retries import repeated, repeated_async
from serving.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    Overloaded,
    PermissionDenied,
    RateLimited,
    SluiceError,
    TooLarge,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)

SEVEN = {"label": "seven", "index": 7, "score": 0.5}
ANSWER = {"model": "digits", "version": 3, "results": [{"classes": [SEVEN], "prediction_id": "a.b"}]}

HTTP, RPC = [Client, AsyncClient], [GrpcClient, AsyncGrpcClient]


@dataclass
class HttpServer:
    """Answers every request alike, and keeps the last one."""

    answer: object
    head: str = "200 OK"
    url: str = ""
    path: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @asynccontextmanager
    async def up(self) -> AsyncIterator[HttpServer]:
        """The server, while the block runs."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            self.url = "http://{}:{}".format(*server.sockets[0].getsockname())
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
            self.path = first.split()[1]
            self.headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            self.body = await reader.readexactly(int(self.headers["content-length"]))
            content = json.dumps(self.answer).encode()
            writer.write(f"HTTP/1.1 {self.head}\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
            await writer.drain()
            await reader.read()  # until the client leaves
        writer.close()


@asynccontextmanager
async def grpc_server(answer: Callable[[Any, Any], Awaitable[Any]]) -> AsyncIterator[str]:
    """A server whose `Classify` answers as a test says; its address."""
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=protos.ClassifyRequest.FromString,
        response_serializer=protos.ClassifyResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(protos.IMAGE_CLASSIFICATION, {"Classify": handler})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def asked(
    kind: Any, where: str, images: Any = b"x", *, key: str | None = None, **asks: Any
) -> Prediction:
    """What a client of this kind is answered, once."""
    client = kind(where, api_key=key, retries=Retries(attempts=1))
    if inspect.iscoroutinefunction(client.classify):
        async with client:
            found: Prediction = await client.classify(images, **asks)
        return found
    with client:
        return await asyncio.to_thread(client.classify, images, **asks)


@pytest.mark.parametrize("kind", HTTP)
async def test_what_is_asked_over_http(kind: Any) -> None:
    async with HttpServer(ANSWER).up() as server:
        found = await asked(
            kind, server.url, key="s3cret", model="a/b:c", label="new?", top_k=2, timeout_s=5.25
        )
        assert server.path == "/v1/models/a%2Fb%3Ac/labels/new%3F:classify?top_k=2"
        assert server.headers["authorization"] == "Bearer s3cret"
        assert 1.0 < float(server.headers["x-request-timeout"]) <= 5.25
        await asked(kind, server.url, model="digits", version=3)
        assert server.path == "/v1/models/digits/versions/3:classify"
        assert "authorization" not in server.headers
        await asked(kind, f"{server.url}/behind/a/proxy")
        assert server.path == "/behind/a/proxy/v1/classify"
        for name, sent in (("..", "%2E%2E"), (".", "%2E"), ("../%2F", "..%2F%252F"), ("100 %", "100%20%25")):
            await asked(kind, server.url, model=name, version=3)
            assert server.path == f"/v1/models/{sent}/versions/3:classify"
            await asked(kind, server.url, model=name, label=name)
            assert server.path == f"/v1/models/{sent}/labels/{sent}:classify"
    (result,) = found.results
    assert (found.model, found.version, result.prediction_id) == ("digits", 3, "a.b")
    assert result.classes == (ClassScore("seven", 7, 0.5),)


@pytest.mark.parametrize("kind", HTTP)
async def test_what_a_later_gateway_says_beside_is_passed_over(kind: Any) -> None:
    """As it is in every other place of an answer, and over gRPC."""
    result = {"classes": [{**SEVEN, "new": 1}], "new": 1}
    async with HttpServer({**ANSWER, "results": [result], "new": 1}).up() as server:
        found = await asked(kind, server.url)
    assert found.results[0].classes == (ClassScore("seven", 7, 0.5),)


@pytest.mark.parametrize("kind", HTTP)
async def test_large_images_arrive_whole(kind: Any) -> None:
    image = random.Random(0).randbytes(200_001)
    async with HttpServer(ANSWER).up() as server:
        await asked(kind, server.url, image)
        assert server.body == image
        await asked(kind, server.url, [image, image])
        assert server.body.count(image) == 2


@pytest.mark.parametrize("kind", RPC)
async def test_what_is_asked_over_grpc(kind: Any) -> None:
    calls: list[tuple[Any, dict[str, Any], float]] = []

    async def answer(request: Any, context: Any) -> Any:
        await asyncio.sleep(0)
        calls.append((request, dict(context.invocation_metadata()), context.time_remaining()))
        response = protos.ClassifyResponse(model="digits", version=3)
        response.results.add(prediction_id="a.b").classes.add(**SEVEN)
        return response

    async with grpc_server(answer) as target:
        found = await asked(kind, target, key="s3cret", model="a", label="new", top_k=2, timeout_s=5)
        await asked(kind, target, model="a", version=3)
    (request, metadata, left_s), (other, bare, _) = calls
    assert (request.model, request.label, request.top_k, list(request.images)) == ("a", "new", 2, [b"x"])
    assert metadata["authorization"] == "Bearer s3cret"
    assert 1 < left_s < 6  # gRPC sends it rounded up
    assert (other.version, other.label, other.HasField("top_k")) == (3, "", False)
    assert "authorization" not in bare
    (result,) = found.results
    assert (found.model, found.version, result.prediction_id) == ("digits", 3, "a.b")
    assert result.classes == (ClassScore("seven", 7, 0.5),)


@pytest.mark.parametrize("kind", HTTP)
async def test_a_problem_is_told_whole(kind: Any) -> None:
    problem = {"type": "urn:sluice:problem:overloaded", "detail": "full", "stage": "admission"}
    async with HttpServer(problem, "503 Full\r\nRetry-After: 2.5").up() as server:
        with pytest.raises(Overloaded, match="full") as refused:
            await asked(kind, server.url)
        assert (refused.value.stage, refused.value.retry_after_s) == ("admission", 2.5)
        server.answer = {**problem, "type": "urn:sluice:problem:of-a-newer-gateway"}
        with pytest.raises(Internal, match="full"):
            await asked(kind, server.url)


@pytest.mark.parametrize("kind", RPC)
@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("UNAVAILABLE", Unavailable),
        ("DEADLINE_EXCEEDED", DeadlineExceeded),
        ("CANCELLED", Cancelled),
        ("UNIMPLEMENTED", Unimplemented),
        ("RESOURCE_EXHAUSTED", TooLarge),
        ("UNAUTHENTICATED", Unauthenticated),
        ("PERMISSION_DENIED", PermissionDenied),
        ("DATA_LOSS", Internal),
    ],
)
async def test_what_no_gateway_says_over_grpc_is_told_by_its_code(
    kind: Any, code: str, error: type[SluiceError]
) -> None:
    async def refuse(_request: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode[code], "by a proxy")

    async with grpc_server(refuse) as target:
        with pytest.raises(error, match="by a proxy") as refused:
            await asked(kind, target)
    assert type(refused.value) is error


@pytest.mark.parametrize("kind", RPC)
async def test_a_deadline_over_grpc_is_the_calls(kind: Any) -> None:
    async def hang(_request: Any, _context: Any) -> None:
        await asyncio.Event().wait()

    async with grpc_server(hang) as target:
        with pytest.raises(DeadlineExceeded):
            await asked(kind, target, timeout_s=0.5)


async def test_no_pause_outlasts_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses are lengthened at random, those that a gateway asks for, too."""
    pauses: list[float] = []

    async def note(pause_s: float) -> None:
        pauses.append(pause_s)

    def refuse(_timeout_s: float) -> None:
        raise RateLimited("x", retry_after_s=2)

    async def refuse_async(timeout_s: float) -> None:
        refuse(timeout_s)

    monkeypatch.setattr("time.sleep", pauses.append)
    monkeypatch.setattr("asyncio.sleep", note)
    for _ in range(50):
        with pytest.raises(RateLimited):
            repeated(Retries(), 2.5, refuse)
    blocking = len(pauses)
    for _ in range(50):
        with pytest.raises(RateLimited):
            await repeated_async(Retries(), 2.5, refuse_async)
    assert 0 < blocking < len(pauses)
    assert 2.0 <= min(pauses) <= max(pauses) < 2.5


def test_a_deadline_that_has_passed_gives_one_attempt_all_the_same() -> None:
    assert 0 < repeated(Retries(), -1.0, lambda left_s: left_s) < 0.01

"""What the Python client says of an answer that is no gateway's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serving.client import AsyncClient, Client, Retries
from serving.errors import (
    Internal,
    PermissionDenied,
    RateLimited,
    SluiceError,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from tests.doors.answering import answering, asked
from tests.doors.conftest import Live


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
        with pytest.raises(Internal, match="answered 200, but with no prediction; is it a Sluice gateway"):
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
async def test_where_a_redirect_points_to_is_told_and_not_followed(kind: Any) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 308 Moved\r\nLocation: https://127.0.0.1:1/v1/classify\r\nContent-Length: 0\r\n\r\n"
        )
        await writer.drain()

    async with answering(answer) as url:
        with pytest.raises(
            Internal, match=r"answered 308 Moved; it points to https://127\.0\.0\.1:1/v1/classify$"
        ):
            await asked(kind, url)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_a_gateway_that_hangs_up_is_not_taken_for_a_grpc_port(kind: Any) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0)
        writer.close()

    async with answering(answer) as url:
        with pytest.raises(Unavailable, match="no gateway answers at"):
            await asked(kind, url)


def test_a_grpc_port_is_told_from_nobody(live: Live, photograph: bytes) -> None:
    with (
        Client(f"http://{live.grpc_address}", retries=Retries(attempts=1)) as client,
        pytest.raises(Unavailable, match=r"does not speak HTTP .*; is it a gRPC port\?"),
    ):
        client.classify(photograph)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_a_proxy_in_between_is_not_taken_for_the_gateway(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://user:secret@127.0.0.1:1")
    for direct in ("", "127.0.0.1"):
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.setenv(name, direct)
        with pytest.raises(Unavailable, match=r"no gateway answers at http://127\.0\.0\.1:2: ") as refused:
            await asked(kind, "http://127.0.0.1:2")
        assert ("asked through the proxy that the environment names" in str(refused.value)) == (not direct)
        assert "secret" not in str(refused.value)

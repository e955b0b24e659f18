"""When the Python client tries again."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import httpx
import pytest

from serving.client import AsyncClient, AsyncGrpcClient, Retries
from serving.client.retries import repeated
from serving.errors import (
    NotFound,
    Overloaded,
    RateLimited,
    SluiceError,
    Unavailable,
)
from serving.main import Running
from tests.doors.replica import ScriptedReplica
from tests.support.fake_replica import Refusal
from tests.support.http import grey_png


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

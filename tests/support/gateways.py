"""A whole gateway in the test's own event loop, on real sockets."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from serving.main import Running, gateway_up, new_metrics
from serving.settings import Settings
from tests.support.fake_replica import FakeReplica

# The authorities that a client trusts unasked take 20 ms to read, and no gateway here is of theirs.
_TRUSTS_NOBODY = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@asynccontextmanager
async def gateway_over(
    *replicas: FakeReplica, models: tuple[str, ...] = ("digits",), wait: bool = True, **settings: Any
) -> AsyncIterator[tuple[Running, httpx.AsyncClient]]:
    """A gateway in front of running replicas, and an HTTP client of it."""
    values: dict[str, Any] = {"http_port": 0, "grpc_port": 0, "status_interval_s": 0.05} | settings
    loaded = Settings(**values)
    addresses = [replica.address for replica in replicas]
    async with (
        gateway_up(loaded, addresses, models, new_metrics()) as running,
        httpx.AsyncClient(base_url=running.http_url, timeout=60, verify=_TRUSTS_NOBODY) as client,
    ):
        if wait:
            await running.catalog.ready()
        yield running, client


@asynccontextmanager
async def gateway_to_end(
    *replicas: FakeReplica, **settings: Any
) -> AsyncIterator[tuple[Running, asyncio.Event, asyncio.Task[None]]]:
    """A gateway in a task of its own; what has it shut down once it is set; and its end."""
    up: asyncio.Future[Running] = asyncio.get_running_loop().create_future()
    leave = asyncio.Event()

    async def live() -> None:
        async with gateway_over(*replicas, **settings) as (running, _):
            up.set_result(running)
            await leave.wait()

    ended = asyncio.create_task(live())
    await asyncio.wait((up, ended), return_when=asyncio.FIRST_COMPLETED)
    try:
        yield up.result(), leave, ended
    finally:
        leave.set()
        await ended


def counted(running: Running, name: str, **labels: str) -> float:
    """The sum over the gateway's series of this name that have these labels, whatever else they have."""
    return sum(
        sample.value
        for family in running.gateway.metrics.registry.collect()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )

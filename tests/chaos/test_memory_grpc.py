"""gRPC messages under a limit of memory: answered, refused before they are read, or given up as they come."""

from __future__ import annotations

import asyncio
import ctypes
import mmap
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

import grpc
import grpc.aio
import httpx
import psutil
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from serving import protos
from tests.chaos.test_memory import CLIENTS, LARGE_BYTES, MIB, PICTURE, PNG, picture_of
from tests.support.fake_replica import FakeReplica, running, until
from tests.support.gateways import counted, gateway_over
from tests.support.processes import started

CLASSIFY = f"/{protos.IMAGE_CLASSIFICATION}/Classify"
REQUEST, RESPONSE = protos.methods(protos.IMAGE_CLASSIFICATION)["Classify"]
SMALL = REQUEST(model="digits", images=[PICTURE]).SerializeToString()
OK = grpc.StatusCode.OK
REFUSED = grpc.StatusCode.RESOURCE_EXHAUSTED
LIMIT_BYTES = 512 * MIB
LOAD_S = 3.0
ROOM_BYTES = 400 * MIB
SLOW = 10


class Raw(Protocol):
    """Methods of messages that are bytes."""

    def __call__(self, messages: Any, timeout: float) -> Any:
        """A call."""


def method(channel: grpc.aio.Channel, kind: str, path: str = CLASSIFY) -> Raw:
    """A method as the client takes it to be, whatever it is at the server."""
    found: Raw = getattr(channel, kind)(path)
    return found


def channel_to(address: str) -> grpc.aio.Channel:
    """A connection of its own."""
    return grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])


async def code_of(channel: grpc.aio.Channel, message: bytes, texts: Counter[str]) -> grpc.StatusCode:
    try:
        await method(channel, "unary_unary")(message, timeout=60)
    except grpc.aio.AioRpcError as error:
        texts[error.details() or ""] += 1
        status = rpc_status.from_call(error)
        delays = [
            retry.retry_delay.seconds
            for each in status.details
            if each.Unpack(retry := error_details_pb2.RetryInfo())
        ]
        assert delays == [1]
        return error.code()
    return OK


def resident_bytes() -> int:
    """What this process has resident, without what other tests have left to be given back."""
    ctypes.CDLL(None).malloc_trim(0)
    return psutil.Process().memory_info().rss


def peak_bytes(pid: int) -> int:
    """The most that a process had resident so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


async def test_more_large_messages_than_there_is_memory_for_leave_it_below_its_limit() -> None:
    large = REQUEST(model="digits", images=[picture_of(LARGE_BYTES)]).SerializeToString()
    seen: Counter[grpc.StatusCode] = Counter()
    texts: Counter[str] = Counter()
    latest = 0.0

    async def client(address: str) -> None:
        async with channel_to(address) as channel:
            while asyncio.get_running_loop().time() < latest:
                seen[await code_of(channel, large, texts)] += 1

    async with running(FakeReplica()) as fake:
        command = ["gateway", f"--replica={fake.address}", "--model=digits"]
        async with started(command, {"SLUICE_MAX_MEMORY_BYTES": str(LIMIT_BYTES)}) as live:
            latest = asyncio.get_running_loop().time() + LOAD_S
            await asyncio.gather(*(client(live.grpc_address) for _ in range(CLIENTS)))
            peak = peak_bytes(live.pid)
            async with channel_to(live.grpc_address) as channel, asyncio.timeout(20):
                while await code_of(channel, SMALL, texts) is not OK:
                    seen[REFUSED] += 1
                    await asyncio.sleep(0.1)
            async with httpx.AsyncClient(base_url=live.http_url) as http:
                metrics = (await http.get("/metrics")).text
    print(f"peak {peak / MIB:.0f} of {LIMIT_BYTES / MIB:.0f} MB", dict(seen))
    assert peak < LIMIT_BYTES
    assert set(seen) == {OK, REFUSED}, texts
    assert all(text.startswith("the gateway's memory is nearly used up") for text in texts), texts
    assert f'sluice_requests_refused_total{{reason="memory"}} {seen[REFUSED]}.0' in metrics.splitlines()


async def silent(hold: asyncio.Event) -> AsyncIterator[bytes]:
    """A message that does not come."""
    await hold.wait()
    yield SMALL


async def test_slow_messages_keep_out_nobody_and_are_given_up_when_memory_is_gone() -> None:
    hold = asyncio.Event()
    limit_bytes = resident_bytes() + ROOM_BYTES
    async with (
        running(FakeReplica()) as fake,
        gateway_over(fake, max_memory_bytes=limit_bytes) as (up, http),
        channel_to(up.grpc_address) as channel,
    ):
        slow = [method(channel, "stream_unary")(silent(hold), timeout=60) for _ in range(SLOW)]
        for _ in range(3):
            response = RESPONSE.FromString(await method(channel, "unary_unary")(SMALL, timeout=60))
            assert response.results[0].classes
        assert counted(up, "sluice_requests_refused_total", reason="memory") == 0
        # More than there is room for: some may be given back meanwhile.
        with mmap.mmap(-1, ROOM_BYTES + 100 * MIB) as ballast:
            while ballast.tell() < len(ballast):
                ballast.write(bytes(MIB))
            assert {await each.code() for each in slow} == {REFUSED}
            await assert_refuses_at_once(up, http, channel)
            refused = counted(up, "sluice_requests_refused_total", reason="memory")
            assert refused == len(slow) + 3
        assert RESPONSE.FromString(await method(channel, "unary_unary")(SMALL, timeout=60)).results
        assert counted(up, "sluice_requests_refused_total", reason="memory") == refused
        hold.set()


async def assert_refuses_at_once(up: Any, http: httpx.AsyncClient, channel: grpc.aio.Channel) -> None:
    """In the form of each door; health is answered."""
    texts: Counter[str] = Counter()
    assert await code_of(channel, SMALL, texts) is REFUSED
    for path, field in (("/v1/models/digits:classify", "detail"), ("/v1/models/digits:predict", "error")):
        answer = await http.post(path, content=PICTURE, headers=PNG)
        assert answer.status_code == 503, answer.text
        assert answer.headers["retry-after"] == "1"
        texts[answer.json()[field]] += 1
    assert len(texts) == 1
    health = health_pb2_grpc.HealthStub(channel)
    answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=20)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    watched = health.Watch(health_pb2.HealthCheckRequest(), timeout=20)
    assert (await watched.read()).status == health_pb2.HealthCheckResponse.SERVING
    watched.cancel()
    assert up.gateway.admission.in_flight == 0


async def test_every_kind_of_call_passes_where_there_is_room() -> None:
    limit_bytes = resident_bytes() + 600 * MIB
    stream = f"/{protos.IMAGE_CLASSIFICATION}/ClassifyStream"
    async with (
        running(FakeReplica()) as fake,
        gateway_over(fake, max_memory_bytes=limit_bytes) as (up, _),
        channel_to(up.grpc_address) as channel,
    ):
        answers = await asyncio.gather(
            *(method(channel, "unary_unary")(SMALL, timeout=60) for _ in range(100))
        )
        assert all(RESPONSE.FromString(each).results for each in answers)
        call = method(channel, "stream_stream", stream)(iter([SMALL] * 40), timeout=60)
        assert len([each async for each in call]) == 40
        empty = method(channel, "stream_unary")(iter([]), timeout=60)
        assert await empty.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert await empty.details() == "the call ended without a message"
        assert await method(channel, "unary_unary", "/sluice.v1.None/Such")(SMALL, timeout=60).code() is (
            grpc.StatusCode.UNIMPLEMENTED
        )
        leaves = method(channel, "stream_unary")(silent(asyncio.Event()), timeout=60)
        await until(lambda: up.gateway.pressure is not None and up.gateway.pressure.reading)
        leaves.cancel()
        await until(lambda: up.gateway.pressure is not None and not up.gateway.pressure.reading)
        assert counted(up, "sluice_requests_refused_total", reason="memory") == 0

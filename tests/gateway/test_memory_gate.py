"""What waits before its message is read: in turn, for a while, and at nobody else's cost."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from structlog.testing import capture_logs

from serving import protos
from serving.errors import Overloaded, SluiceError
from serving.gateway import Gateway
from serving.prediction import ModelRef, RequestContext
from serving.pressure import Pressure
from serving.rpc import memory_gate
from serving.rpc.memory_gate import MemoryGate
from serving.settings import Settings
from tests.support.fake_replica import FakeReplica, running, until
from tests.support.gateways import counted, gateway_over

MIB = 2**20
PLENTY_BYTES = 1000 * MIB
# A fifth is kept: with so little beyond it one message is read, and others wait until it has come.
SCARCE_BYTES = PLENTY_BYTES // 5 + MIB
REFUSED = grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is refused because the machine is slow."""
    monkeypatch.setattr(memory_gate, "_WAIT_S", 60.0)


class Scene:
    """A server with the gate before two methods, and the memory that is left, as a test sets it.

    Attributes:
        left_bytes: what is left.
        came: the messages that the methods were given, in their order.
        refused: the errors that the journal was told of.
        hold: what every answer waits for.
    """

    def __init__(self) -> None:
        self.settings = Settings()
        self.journal = self
        self.left_bytes = PLENTY_BYTES
        self.pressure = Pressure(lambda: self.left_bytes, 100 * MIB)
        self.gate = MemoryGate(cast("Gateway", self), self.pressure)
        self.came: list[bytes] = []
        self.refused: list[SluiceError] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.address = ""

    def refused_early(self, _protocol: str, _request_id: str, error: SluiceError) -> None:
        self.refused.append(error)

    async def one(self, message: bytes, _call: Any) -> bytes:
        self.came.append(message)
        await self.hold.wait()
        return b""

    async def many(self, messages: AsyncIterator[bytes], _call: Any) -> AsyncIterator[bytes]:
        async for message in messages:
            self.came.append(message)
            self.left_bytes = 0
            await asyncio.sleep(0.01)  # longer than what was read of it is taken to hold
            yield b""

    def waiting(self) -> int:
        """How many calls wait for room."""
        return len(self.gate._waiting)


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    made = Scene()
    server = grpc.aio.server(interceptors=[made.gate])
    methods = {
        "One": grpc.unary_unary_rpc_method_handler(made.one, bytes, bytes),
        "Many": grpc.stream_stream_rpc_method_handler(made.many, bytes, bytes),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", methods),))
    made.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        async with asyncio.timeout(60):
            yield made
    finally:
        await server.stop(None)


def connected(to: Scene) -> grpc.aio.Channel:
    """A connection of its own, of which nothing is known."""
    return grpc.aio.insecure_channel(to.address, options=[("grpc.use_local_subchannel_pool", 1)])


def one(channel: grpc.aio.Channel, message: bytes) -> Any:
    """A call with one message."""
    return cast("Any", channel.unary_unary("/test/One"))(message)


@asynccontextmanager
async def used_up(up: Scene, channel: grpc.aio.Channel) -> AsyncIterator[None]:
    """Little memory, which a message has that does not come."""
    up.left_bytes = SCARCE_BYTES
    slow = cast("Any", channel.stream_unary("/test/One"))()
    await slow.wait_for_connection()
    await until(lambda: up.pressure.reading)
    yield
    slow.cancel()


async def test_who_waits_is_let_in_as_there_is_room_and_nobody_overtakes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory_gate, "_LOOK_S", 0.3)
    async with scene() as up, connected(up) as channel, used_up(up, channel):
        first = one(channel, b"first")
        await until(lambda: up.waiting() == 1)
        up.left_bytes = PLENTY_BYTES
        second = one(channel, b"second")
        await asyncio.gather(first, second)
        assert up.came == [b"first", b"second"]
        assert up.refused == []


async def test_who_leaves_while_it_waits_keeps_out_nobody() -> None:
    async with scene() as up, connected(up) as channel, used_up(up, channel):
        leaves, stays = [], []
        for number in range(2):
            leaves.append(one(channel, b"leaves"))
            await until(lambda number=number: up.waiting() == 2 * number + 1)  # type: ignore[misc]
            stays.append(one(channel, b"stays"))
            await until(lambda number=number: up.waiting() == 2 * number + 2)  # type: ignore[misc]
        for each in leaves:
            each.cancel()
        await until(lambda: sum(turn.done() for turn, _ in up.gate._waiting) + 4 - up.waiting() >= 2)
        up.left_bytes = PLENTY_BYTES
        await asyncio.gather(*stays)
        assert up.came == [b"stays"] * 2
        assert up.refused == []


async def test_who_finds_no_room_is_refused_after_a_while_and_that_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory_gate, "_WAIT_S", 0.2)
    async with scene() as up, connected(up) as channel, used_up(up, channel):
        assert await one(channel, b"it").code() is REFUSED
        assert up.came == []
        assert [error.kind for error in up.refused] == ["overloaded"]


async def test_who_waits_for_what_is_worked_on_alone_is_let_in_once_that_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory_gate, "_LOOK_S", 0.0)
    async with scene() as up, connected(up) as channel:
        up.hold.clear()
        up.left_bytes = SCARCE_BYTES
        worked_on = one(channel, bytes(MIB))
        await until(lambda: len(up.came) == 1)
        waits = one(channel, b"waits")
        await until(lambda: up.waiting() == 1)
        for _ in range(20):  # looks
            await asyncio.sleep(0)
        assert len(up.came) == 1
        up.hold.set()
        await asyncio.gather(worked_on, waits)
        assert up.refused == []


async def test_only_so_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_gate, "_MOST_WAITING", 2)
    async with scene() as up, connected(up) as channel, used_up(up, channel):
        wait = [one(channel, b"waits") for _ in range(2)]
        await until(lambda: up.waiting() == 2)
        assert await one(channel, b"one too many").code() is REFUSED
        up.left_bytes = PLENTY_BYTES
        await asyncio.gather(*wait)
        assert up.came == [b"waits"] * 2


async def test_the_next_message_of_a_stream_is_not_read_while_memory_is_short() -> None:
    async with scene() as up, connected(up) as channel:
        stream = cast("Any", channel.stream_stream("/test/Many"))(iter([b"1", b"2"]))
        assert await stream.read() == b""
        await until(lambda: up.pressure.short.is_set() or len(up.came) > 1)
        assert up.came == [b"1"]
        up.left_bytes = PLENTY_BYTES
        assert await stream.read() == b""
        assert up.came == [b"1", b"2"]
        stream.cancel()


async def test_a_call_that_was_let_in_is_not_refused_for_the_memory_that_it_takes_itself() -> None:
    async with running(FakeReplica()) as fake, gateway_over(fake, max_memory_bytes=2**40) as (up, _):
        pressure, latest = up.gateway.pressure, time.monotonic() + 60
        assert pressure is not None
        pressure._left, pressure._sampled = (lambda: 0), -math.inf
        assert not pressure.busy()
        with up.gateway.request(RequestContext("a", "grpc", latest), ModelRef("digits")):
            assert pressure.busy()
            over_http = RequestContext("b", "http", latest)
            with pytest.raises(Overloaded), up.gateway.request(over_http, ModelRef("digits")):
                raise AssertionError
        assert not pressure.busy()


async def test_a_stream_that_is_given_up_is_told_why_and_that_is_no_fault_of_the_gateway() -> None:
    async with (
        running(FakeReplica()) as fake,
        gateway_over(fake, max_memory_bytes=2**40) as (up, _),
        grpc.aio.insecure_channel(up.grpc_address) as channel,
    ):
        pressure, tasks = up.gateway.pressure, len(asyncio.all_tasks())
        assert pressure is not None
        with capture_logs() as lines:
            stream: Any = channel.stream_stream(f"/{protos.IMAGE_CLASSIFICATION}/ClassifyStream")
            idle = stream()
            await until(lambda: pressure.reading)
            pressure._left = lambda: 0
            assert await idle.code() is REFUSED
            await until(lambda: len(asyncio.all_tasks()) <= tasks)
        assert [line["log_level"] for line in lines if line["log_level"] == "error"] == []
        assert counted(up, "sluice_requests_total", protocol="grpc", outcome="overloaded") == 1
        assert counted(up, "sluice_requests_total") == 1

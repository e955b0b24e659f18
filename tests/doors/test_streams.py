"""Streams of requests over gRPC: what is kept while a stream is open, and what ends with it."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest

from serving import protos
from serving.rpc.streams import WINDOW, answered_in_order
from tests.doors.replica import ScriptedReplica
from tests.support.fake_replica import until
from tests.support.gateways import gateway_over
from tests.support.http import grey_png


class Answer:
    """One that can be watched as it is forgotten."""


async def numbers(count: int) -> AsyncIterator[int]:
    """So many requests."""
    for number in range(count):
        yield number


async def test_a_long_stream_keeps_no_answer_that_was_taken() -> None:
    made: weakref.WeakSet[Answer] = weakref.WeakSet()

    async def answer(_: int) -> Answer:
        found = Answer()
        made.add(found)
        return found

    taken = 0
    async for each in answered_in_order(numbers(10 * WINDOW), answer):
        taken += 1
        del each
    gc.collect()
    assert taken == 10 * WINDOW
    assert len(made) == 0

    stream = answered_in_order(numbers(10 * WINDOW), answer)
    for _ in range(5 * WINDOW):
        await anext(stream)
    gc.collect()
    assert len(made) <= WINDOW + 2  # what waits to be taken
    await stream.aclose()


async def test_requests_are_read_no_more_once_a_stream_is_left() -> None:
    ended = asyncio.Event()

    async def requests() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def answer(number: int) -> int:
        return number

    stream = answered_in_order(requests(), answer)
    assert await anext(stream) == 1
    await stream.aclose()
    await until(ended.is_set)


@pytest.mark.parametrize("memory_bytes", [None, 2**33], ids=["no setting for memory", "a limit of memory"])
async def test_an_idle_stream_keeps_no_request(replica: ScriptedReplica, memory_bytes: int | None) -> None:
    """A client may keep it open for hours: a message of megabytes must not stay until the next one."""
    request = protos.ClassifyRequest(model="digits", images=[grey_png(200)])

    def kept() -> list[object]:
        return [each for each in gc.get_objects() if type(each) is type(request) and each is not request]

    async with (
        gateway_over(replica, max_memory_bytes=memory_bytes) as (up, _),
        grpc.aio.insecure_channel(up.grpc_address) as channel,
    ):
        ask: Any = channel.stream_stream(
            f"/{protos.IMAGE_CLASSIFICATION}/ClassifyStream",
            request_serializer=type(request).SerializeToString,
            response_deserializer=protos.ClassifyResponse.FromString,
        )
        stream = ask()
        for _ in range(2):
            await stream.write(request)
            answer = await stream.read()
            assert answer.results[0].classes
        await until(lambda: not kept(), 10)
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF

"""`sluice.v1`, health for each model, sizes, rich errors, and streams whose clients misbehave."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from serving import protos
from serving.main import Running
from serving.rpc.streams import WINDOW, answered_in_order
from tests.doors.replica import ScriptedReplica
from tests.support.fake_replica import TIME_LEFT_S, until
from tests.support.gateways import gateway_over
from tests.support.http import grey_png

Request = protos.ClassifyRequest


@pytest.fixture
async def channel(up: Running) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(up.grpc_address) as channel:
        yield channel


def classify(channel: grpc.aio.Channel, message: Any, **options: Any) -> Any:
    call: Any = channel.unary_unary(
        f"/{protos.IMAGE_CLASSIFICATION}/Classify",
        request_serializer=Request.SerializeToString,
        response_deserializer=protos.ClassifyResponse.FromString,
    )
    return call(message, **options)


def stream(channel: grpc.aio.Channel, requests: AsyncIterator[Any] | None = None) -> Any:
    call: Any = channel.stream_stream(
        f"/{protos.IMAGE_CLASSIFICATION}/ClassifyStream",
        request_serializer=Request.SerializeToString,
        response_deserializer=protos.ClassifyResponse.FromString,
    )
    return call(requests)


async def test_a_label_an_id_and_trailing_metadata(channel: grpc.aio.Channel) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    metadata = (("x-request-id", "r1"), ("traceparent", f"00-{trace}-00f067aa0ba902b7-01"))
    call = classify(
        channel, Request(images=[grey_png(200)], label="stable", id="a", top_k=1), metadata=metadata
    )
    response = await call
    assert (response.id, response.version, response.results[0].classes[0].label) == ("a", 1, "class-7")
    trailing = dict(await call.trailing_metadata())
    assert trailing["x-request-id"] == "r1"
    assert trace in trailing["traceparent"]


async def test_errors_are_rich(channel: grpc.aio.Channel) -> None:
    for message, code, reason in (
        (Request(model="nope", images=[b"x"]), grpc.StatusCode.NOT_FOUND, "not-found"),
        (Request(), grpc.StatusCode.INVALID_ARGUMENT, "invalid-input"),
        (Request(version=-1, images=[b"x"]), grpc.StatusCode.INVALID_ARGUMENT, "invalid-input"),
        (Request(version=1, label="x", images=[b"x"]), grpc.StatusCode.INVALID_ARGUMENT, "invalid-input"),
        (Request(images=[grey_png(1)], top_k=99), grpc.StatusCode.INVALID_ARGUMENT, "invalid-input"),
        (Request(model="\0" * 10_000, images=[b"x"]), grpc.StatusCode.NOT_FOUND, "not-found"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await classify(channel, message, metadata=(("x-request-id", "r2"),))
        error: Any = refused.value
        assert error.code() is code
        info = error_details_pb2.ErrorInfo()
        status = rpc_status.from_call(error)
        assert status is not None
        assert status.details[0].Unpack(info)
        assert (info.reason, info.domain) == (reason, "sluice")
        assert dict(error.trailing_metadata())["x-request-id"] == "r2"


async def test_images_that_cannot_be_read_are_each_told_though_there_are_no_others(
    channel: grpc.aio.Channel,
) -> None:
    response = await classify(channel, Request(images=[b"x", b"y"]))
    assert [each.error.kind for each in response.results] == ["bad-image"] * 2


async def test_a_stream_answers_in_order_and_survives_a_bad_request(channel: grpc.aio.Channel) -> None:
    async def requests() -> AsyncIterator[Any]:
        for index in range(40):
            images = [grey_png(200)] if index % 7 else []
            yield Request(images=images, id=str(index), top_k=1)

    answers = [each async for each in stream(channel, requests())]
    assert [each.id for each in answers] == [str(index) for index in range(40)]
    for index, each in enumerate(answers):
        if index % 7:
            assert each.results[0].classes[0].label == "class-7"
        else:
            assert each.error.kind == "invalid-input"
            assert not each.results


async def test_a_client_that_reads_nothing_is_not_read_from(
    replica: ScriptedReplica, up: Running, channel: grpc.aio.Channel
) -> None:
    sent = 0
    call = stream(channel)

    async def pour() -> None:
        nonlocal sent
        padding = b"x" * 200_000
        while True:
            await call.write(Request(images=[grey_png(200)], id=padding.decode(), top_k=1))
            sent += 1

    sender = asyncio.ensure_future(pour())
    stalled = -1
    async with asyncio.timeout(60):
        while stalled != sent:
            stalled = sent
            await asyncio.sleep(0.5)
    assert 0 < sent < 20 * WINDOW
    assert up.gateway.admission.in_flight == 0
    response = await classify(channel, Request(images=[grey_png(200)]))
    assert response.results
    sender.cancel()
    call.cancel()


async def test_each_message_of_a_stream_has_its_own_deadline_and_a_call_no_later_one(
    replica: ScriptedReplica,
) -> None:
    left_s: list[float] = []

    async def note(_request: Any) -> None:
        left_s.append(TIME_LEFT_S.get() or 0.0)

    replica.before_predict = note
    async with (
        gateway_over(replica, request_timeout_s=9) as (up, _),
        grpc.aio.insecure_channel(up.grpc_address) as channel,
    ):
        call = stream(channel)
        for _ in range(2):
            began = time.monotonic()
            await call.write(Request(images=[grey_png(200)]))
            assert (await call.read()).results
            assert 9 - (time.monotonic() - began) - 0.1 <= left_s[-1] <= 9.1  # gRPC rounds up
            await asyncio.sleep(0.5)
        call.cancel()
        for asked_s, most_s in ((9000, 9), (7, 7)):
            await classify(channel, Request(images=[grey_png(200)]), timeout=asked_s)
            assert 0 < left_s[-1] <= most_s + 0.1


async def test_requests_in_flight_are_dropped_when_the_client_leaves(
    replica: ScriptedReplica, up: Running, channel: grpc.aio.Channel
) -> None:
    async def never(_request: Any) -> None:
        await asyncio.Event().wait()

    replica.before_predict = never
    call = stream(channel)
    for _ in range(5):
        await call.write(Request(images=[grey_png(200)]))
    await until(lambda: up.gateway.admission.in_flight == 5)
    call.cancel()
    await until(lambda: up.gateway.admission.in_flight == 0)


async def test_the_window_bounds_what_is_worked_on() -> None:
    working = most = 0

    async def answer(number: int) -> int:
        nonlocal working, most
        working += 1
        most = max(most, working)
        await asyncio.sleep(0)
        working -= 1
        return number

    async def numbers() -> AsyncIterator[int]:
        for number in range(100):
            yield number

    assert [each async for each in answered_in_order(numbers(), answer)] == list(range(100))
    assert 1 < most <= WINDOW + 2

    async def broken() -> AsyncIterator[int]:
        yield 1
        raise RuntimeError("the client broke")

    with pytest.raises(RuntimeError, match="the client broke"):
        [each async for each in answered_in_order(broken(), answer)]


async def test_messages_over_size_are_refused_and_others_served(replica: ScriptedReplica) -> None:
    async with (
        gateway_over(replica, max_body_bytes=2**20) as (running, _),
        grpc.aio.insecure_channel(running.grpc_address) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await classify(channel, Request(images=[b"x" * 3 * 2**20]))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await classify(channel, Request(images=[grey_png(1)]))).results


async def test_an_image_may_be_as_large_as_a_body_and_what_is_around_it_is_no_part_of_it(
    replica: ScriptedReplica,
) -> None:
    image = grey_png(200)
    async with (
        gateway_over(replica, max_body_bytes=2**20) as (running, _),
        grpc.aio.insecure_channel(running.grpc_address) as channel,
    ):
        largest = image + bytes(2**20 - len(image))
        response = await classify(channel, Request(model="digits", images=[largest]))
        assert response.results[0].classes[0].label == "class-7"


async def test_a_message_takes_room_for_all_of_it(replica: ScriptedReplica) -> None:
    """And not for its images' bytes alone, of which there may be none."""
    async with (
        gateway_over(replica, max_in_flight_bytes=1000) as (running, _),
        grpc.aio.insecure_channel(running.grpc_address) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="the request has over 1,000 bytes") as refused:
            await classify(channel, Request(images=[b""] * 600))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert running.gateway.admission.held_bytes == 0

"""Callers who leave while a replica computes for them, or while their images are queued."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
import psutil

from serving import protos
from serving.main import Running
from tests.support.fake_replica import FakeReplica, running, until
from tests.support.gateways import gateway_over
from tests.support.http import PATH, grey_png


async def test_a_call_that_all_callers_have_left_is_cancelled_at_the_replica() -> None:
    begun, cancelled, hold = 0, 0, asyncio.Event()

    async def wait(_request: Any) -> None:
        nonlocal begun, cancelled
        begun += 1
        try:
            await hold.wait()
        except asyncio.CancelledError:
            cancelled += 1
            raise

    request, response = protos.methods(protos.IMAGE_CLASSIFICATION)["Classify"]
    async with (
        running(FakeReplica(before_predict=wait)) as fake,
        gateway_over(fake, calls_per_replica=1) as (up, _),
        grpc.aio.insecure_channel(up.grpc_address) as channel,
    ):
        classify = channel.unary_unary(
            f"/{protos.IMAGE_CLASSIFICATION}/Classify",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )

        def ask() -> Any:
            return classify(protos.ClassifyRequest(model="digits", images=[grey_png(200)]))

        alone = ask()
        await until(lambda: begun == 1)
        leaving, staying = ask(), ask()
        await until(lambda: up.gateway.batcher.depth() == 2)
        alone.cancel()
        await until(lambda: cancelled == 1)
        await until(lambda: begun == 2)
        assert fake.batches == [1, 2]
        leaving.cancel()
        await until(lambda: up.gateway.admission.in_flight == 1)
        hold.set()
        assert (await staying).results[0].classes[0].label == "class-7"
        assert cancelled == 1
        replica = up.pool.replicas[0]
        assert (replica.breaker.failures, replica.breakers) == (0, {})


STORMS, CALLERS, STAYING = 4, 60, 5


async def storm(up: Running, picture: bytes, begun: int) -> None:
    """Callers who send whole requests on connections of their own, and leave once all of them are queued."""
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\n"
    head += f"content-length: {len(picture)}\r\n\r\n"
    port = int(up.http_url.rpartition(":")[2])
    writers = []
    for _ in range(CALLERS):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + picture)
        writers.append(writer)
    await until(lambda: up.gateway.batcher.depth() == begun + CALLERS)
    for index, writer in enumerate(writers):  # some with a reset, some with an orderly end
        writer.transport.abort() if index % 2 else writer.close()


async def test_a_storm_of_callers_who_leave_the_queue_costs_nobody_else_anything() -> None:
    """A replica holds its first call until the storms are over; then it has the others' images alone."""
    hold, me = asyncio.Event(), psutil.Process()
    seen: list[int] = []

    async def wait(_request: Any) -> None:
        await hold.wait()

    async with (
        running(FakeReplica(before_predict=wait)) as fake,
        gateway_over(fake, calls_per_replica=1) as (up, client),
    ):

        async def stay(brightness: int) -> None:
            answer = await client.post(
                PATH, content=grey_png(brightness), headers={"content-type": "image/png"}
            )
            assert answer.json()["results"][0]["classes"][0]["label"] == f"class-{brightness * 10 // 256}"
            seen.append(answer.status_code)

        admission, batcher = up.gateway.admission, up.gateway.batcher
        async with asyncio.TaskGroup() as tasks:
            for number in range(1 + STAYING):
                tasks.create_task(stay(20 + 40 * number))
            await until(lambda: fake.batches != [] and batcher.depth() == STAYING)
            files = me.num_fds()
            for _ in range(STORMS):
                await storm(up, grey_png(200), batcher.depth())
                await until(lambda: admission.in_flight == 1 + STAYING)
                assert batcher.depth() < 2 * STAYING, "who left may hold as many places as who stays, at most"
            assert admission.in_progress == 1 + STAYING
            await until(lambda: me.num_fds() <= files + 1)
            hold.set()
        assert seen == [200] * (1 + STAYING)
        assert sum(fake.batches) == 1 + STAYING, "nothing was computed for who had left"
        await until(lambda: batcher.depth() == 0)
        assert (admission.in_flight, admission.held_bytes, admission.in_progress) == (0, 0, 0)
        assert up.pool.replicas[0].in_flight == 0

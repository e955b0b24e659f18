"""Callers who leave while a replica computes for them: its call ends with the last of them."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio

from serving import protos
from tests.support.fake_replica import FakeReplica, running, until
from tests.support.gateways import gateway_over
from tests.support.http import grey_png


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
        assert up.pool.replicas[0].breaker.failures == 0

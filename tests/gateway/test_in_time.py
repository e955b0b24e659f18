"""Work that cannot be done in time, or that nobody wants any longer, takes up neither threads nor room."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import grpc.aio
import numpy as np
import pytest

from serving import protos
from serving.batching import LaneKey
from serving.images import decode
from serving.main import Running
from tests.support.fake_replica import FakeReplica, running, until
from tests.support.gateways import counted, gateway_over
from tests.support.http import PATH, PNG, grey_png, refused


class Hanging(FakeReplica):
    """Answers no Predict; `entered` is set by the first."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        super().__init__(before_predict=self._hang)

    async def _hang(self, _request: Any) -> None:
        self.entered.set()
        await asyncio.Event().wait()


def slow(up: Running, seconds: float, *sizes: int) -> None:
    """Have the gateway expect batches of these sizes to take so long."""
    profile = up.gateway.batcher._profile(LaneKey("digits", 1))
    for size in sizes:
        for _ in range(10):
            profile.learn(size, seconds, time.monotonic())


async def test_an_image_that_no_answer_can_come_for_in_time_is_not_even_decoded() -> None:
    async with running(FakeReplica()) as fake, gateway_over(fake) as (up, client):
        slow(up, 60.0, 1)
        answer = await client.post(PATH, content=grey_png(0), headers=PNG | {"x-request-timeout": "1"})
        assert "it would take at least" in refused(answer, 504, "deadline-exceeded")
        assert counted(up, "sluice_stage_duration_seconds_count", stage="decode") == 0


async def test_an_image_behind_more_than_gets_done_within_the_target_is_refused() -> None:
    fake = Hanging()
    async with (
        running(fake),
        gateway_over(fake, calls_per_replica=1, max_batch=1, target_latency_s=0.5) as (up, client),
    ):
        slow(up, 5.0, 1)
        first = asyncio.create_task(client.post(PATH, content=grey_png(0), headers=PNG))
        await fake.entered.wait()
        second = asyncio.create_task(client.post(PATH, content=grey_png(0), headers=PNG))
        await until(lambda: up.gateway.batcher.depth() == 1)
        answer = await client.post(PATH, content=grey_png(0), headers=PNG)
        assert refused(answer, 503, "overloaded") == "1 images are queued, as many as finish in time"
        for each in (first, second):
            each.cancel()


async def test_a_rush_that_comes_before_anything_is_queued_is_refused_once_its_images_are_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of them pass the first check; a second one takes into account what was queued meanwhile."""
    begin = threading.Event()

    def decode_later(*args: Any, **options: Any) -> np.ndarray:
        begin.wait()
        return decode(*args, **options)

    monkeypatch.setattr("serving.decoding.decode", decode_later)
    fake = Hanging()
    async with (
        running(fake),
        gateway_over(
            fake, calls_per_replica=1, max_batch=2, max_images=1, decode_threads=1, target_latency_s=0.5
        ) as (up, client),
    ):
        slow(up, 5.0, 1, 2)
        asked = [asyncio.create_task(client.post(PATH, content=grey_png(0), headers=PNG)) for _ in range(4)]
        await until(lambda: up.gateway.admission.in_progress == 4)
        begin.set()
        await until(lambda: sum(each.done() for each in asked) == 1, timeout_s=10)
        (answer,) = (each.result() for each in asked if each.done())
        assert "as many as finish in time" in refused(answer, 503, "overloaded")
        for each in asked:
            each.cancel()


async def test_all_images_of_a_caller_who_leaves_are_taken_out_of_the_queue_while_replicas_hang() -> None:
    fake = Hanging()
    async with (
        running(fake),
        gateway_over(fake, calls_per_replica=1) as (up, _),
        grpc.aio.insecure_channel(up.grpc_address) as channel,
    ):
        request, response = protos.methods(protos.IMAGE_CLASSIFICATION)["Classify"]
        classify: Any = channel.unary_unary(
            f"/{protos.IMAGE_CLASSIFICATION}/Classify",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        stays = classify(protos.ClassifyRequest(images=[grey_png(0)]))
        await fake.entered.wait()
        leaves = classify(protos.ClassifyRequest(images=[grey_png(0)] * 8))
        await until(lambda: counted(up, "sluice_queue_depth", model="digits") == 8)
        leaves.cancel()
        await until(lambda: counted(up, "sluice_queue_depth", model="digits") == 0, timeout_s=10)
        stays.cancel()

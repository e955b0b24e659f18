"""`grpc.health.v1`: the health of the gateway and of each model, by `Check` and by `Watch`."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving import protos
from tests.doors.replica import ScriptedReplica
from tests.support.fake_replica import until
from tests.support.gateways import gateway_over, gateway_to_end

Request = health_pb2.HealthCheckRequest
Status = health_pb2.HealthCheckResponse


def stub_on(channel: grpc.aio.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)


async def test_health_tells_of_each_model(replica: ScriptedReplica) -> None:
    replica.versions = {"digits": {1}}
    async with (
        gateway_over(replica, models=("digits", "other"), wait=False) as (running, _),
        grpc.aio.insecure_channel(running.grpc_address) as channel,
    ):
        stub = stub_on(channel)

        async def state(service: str) -> int:
            return int((await stub.Check(Request(service=service))).status)

        async with asyncio.timeout(60):
            while await state("digits") != Status.SERVING:
                await asyncio.sleep(0.02)
        assert await state("other") == Status.NOT_SERVING
        assert await state("") == Status.NOT_SERVING
        assert await state(protos.PREDICTION_SERVICE) == Status.NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await state("nope")
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        replica.versions = {"digits": {1}, "other": {1}}
        async with asyncio.timeout(60):
            while await state("") != Status.SERVING:
                await asyncio.sleep(0.02)
        replica.versions = {"digits": {1}}
        async with asyncio.timeout(60):
            while await state("other") != Status.NOT_SERVING:
                await asyncio.sleep(0.02)
        assert await state("") == Status.SERVING, "it was whole once, and serves the other model still"
        watch = stub.Watch(Request(service="other"))
        assert (await watch.read()).status == Status.NOT_SERVING
        running.catalog.set_models(["digits"])
        assert (await watch.read()).status == Status.SERVICE_UNKNOWN
        with pytest.raises(grpc.aio.AioRpcError, match="there is no service, and no model, 'other'"):
            await state("other")
        watch.cancel()


@pytest.mark.parametrize("memory_bytes", [None, 2**40], ids=["no limit", "a limit of memory"])
async def test_who_watches_is_told_of_each_change_though_others_who_watched_have_left(
    replica: ScriptedReplica, memory_bytes: int | None
) -> None:
    async with (
        gateway_over(replica, max_memory_bytes=memory_bytes) as (up, _),
        grpc.aio.insecure_channel(up.grpc_address) as channel,
        asyncio.timeout(20),
    ):
        leaves, stays = (stub_on(channel).Watch(Request(service="digits")) for _ in range(2))
        for each in (leaves, stays):
            while (await each.read()).status != Status.SERVING:
                pass
        tasks = len(asyncio.all_tasks())
        leaves.cancel()
        await until(lambda: len(asyncio.all_tasks()) < tasks)
        for versions, status in ((set(), Status.NOT_SERVING), ({2}, Status.SERVING)):
            replica.versions = {"digits": versions}
            assert (await stays.read()).status == status
        stays.cancel()


async def test_who_watches_is_told_that_the_gateway_ends_which_does_not_wait_for_it(
    replica: ScriptedReplica,
) -> None:
    async with (
        gateway_to_end(replica, drain_timeout_s=600) as (up, leave, ended),
        grpc.aio.insecure_channel(up.grpc_address) as channel,
        asyncio.timeout(20),
    ):
        watch = stub_on(channel).Watch(Request())
        while (await watch.read()).status != Status.SERVING:
            pass
        leave.set()
        assert (await watch.read()).status == Status.NOT_SERVING
        assert await watch.read() is grpc.aio.EOF
        await ended

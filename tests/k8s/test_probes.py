"""The paths that manifests name are answered by a gateway."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from k8s.tools import check, manifests
from tests.support.fake_replica import FakeReplica, running
from tests.support.gateways import gateway_over


async def test_probes_and_scrapes_ask_what_the_gateway_answers(tmp_path: Path) -> None:
    documents = manifests.build(check.folder_of("production", check.K8S, tmp_path))
    (container,) = [
        each for each in manifests.containers(documents) if each.where == "Deployment/gateway: gateway"
    ]
    paths = {
        container.spec[probe]["httpGet"]["path"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    (monitor,) = [
        each for each in manifests.of_kind(documents, "PodMonitor") if each["metadata"]["name"] == "gateway"
    ]
    scraped = {endpoint["path"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    replica = FakeReplica()
    async with running(replica), gateway_over(replica) as (_, client):
        answers = {path: (await client.get(path)).status_code for path in paths | scraped}
    assert answers == {"/healthz": 200, "/readyz": 200, "/metrics": 200}


async def test_a_gateway_without_a_replica_lives_and_is_not_ready() -> None:
    async with gateway_over(wait=False) as (_, client):
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).status_code == 503


async def test_a_model_that_loses_its_replicas_takes_no_other_with_it() -> None:
    replica = FakeReplica(versions={"digits": {1}})
    async with (
        running(replica),
        gateway_over(replica, models=("digits", "letters"), wait=False) as (up, client),
        grpc.aio.insecure_channel(up.grpc_address) as channel,
    ):
        check = health_pb2_grpc.HealthStub(channel).Check

        async def seen() -> tuple[int, list[str], int]:
            answer = await client.get("/readyz")
            health = await check(health_pb2.HealthCheckRequest())
            return answer.status_code, answer.json()["missing"], health.status

        async def until_seen(*expected: Any) -> None:
            async with asyncio.timeout(60):
                while await seen() != expected:
                    await asyncio.sleep(0.01)

        serving, not_serving = (
            health_pb2.HealthCheckResponse.SERVING,
            health_pb2.HealthCheckResponse.NOT_SERVING,
        )
        await up.catalog.refreshed()
        await until_seen(503, ["letters"], not_serving)
        replica.versions = {"digits": {1}, "letters": {1}}
        await until_seen(200, [], serving)
        replica.versions = {"digits": {1}, "letters": set()}
        await until_seen(200, ["letters"], serving)
        replica.versions = {"digits": set(), "letters": set()}
        await until_seen(503, ["digits", "letters"], not_serving)
        replica.versions = {"digits": {1}, "letters": set()}
        await until_seen(200, ["letters"], serving)

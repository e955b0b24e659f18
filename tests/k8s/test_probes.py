"""The paths that manifests name are answered by a gateway."""

from __future__ import annotations

from pathlib import Path

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

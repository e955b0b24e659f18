"""Gateways whose rollouts are objects of the tests' API server, and a Prometheus that scrapes them."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import httpx2
import yaml
from lightkube import Client, KubeConfig
from lightkube.config.models import Cluster, User
from prometheus_client.parser import text_string_to_metric_families as parse
from prometheus_client.samples import Sample

from serving.main import _rollouts_of
from serving.processes.upstream import Upstream
from serving.rollout.kubernetes import KubernetesStore
from serving.rollout.plan import Plan
from serving.rollout.record import Rollout, from_json
from serving.settings import Settings
from tests.rollout.api_server import ApiServer
from tests.rollout.replicas import FAST, Scene, VersionedReplica, ask_for_ever
from tests.support.beside import beside
from tests.support.fake_replica import FakeReplica, running, until
from tests.support.gateways import gateway_over

NAMESPACE = "serving"
SELECTOR = f'namespace="{NAMESPACE}"'


@dataclass
class Scraper:
    """A Prometheus that scrapes whenever it is asked, for the one query that rollouts make.

    Attributes:
        gateways: Where to scrape.
        away: Whether it answers 503.
        astray: Whether it scrapes nothing, and answers all the same.
        url: Where it is.
    """

    gateways: list[str] = field(default_factory=list)
    away: bool = False
    astray: bool = False
    url: str = ""

    def answer(self, query: str) -> list[dict[str, Any]]:
        found = re.fullmatch(
            r"sum by \(instance, worker, name\) \(sluice_rollout_events_total"
            rf'\{{model="(\w+)", {SELECTOR}\}}\)'
            rf" or sum by \(instance, worker\) \(sluice_requests_in_flight\{{{SELECTOR}\}}\)",
            query,
        )
        assert found is not None, query
        return [
            {"metric": {"instance": url} | name, "value": [0.0, str(sample.value)]}
            for url in ([] if self.astray else self.gateways)
            for family in parse(httpx.get(f"{url}/metrics", timeout=10).text)
            for sample in family.samples
            if (name := _asked_for(sample, found[1])) is not None
        ]


def _asked_for(sample: Sample, model: str) -> dict[str, str] | None:
    """The labels beside `instance` of a sample that the query asks for, None for others."""
    if sample.name == "sluice_rollout_events_total" and sample.labels["model"] == model:
        return {"name": sample.labels["name"]}
    return {} if sample.name == "sluice_requests_in_flight" else None


@contextmanager
def scraping() -> Iterator[Scraper]:
    """A running scraper."""
    state = Scraper()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)["query"][0]
            result = [] if state.away else state.answer(query)
            body = json.dumps({"data": {"result": result}}).encode()
            self.send_response(503 if state.away else 200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def kubeconfig(folder: Path, server: ApiServer) -> Path:
    """A file that says where the API server is."""
    names = {"cluster": "tests", "user": "tests"}
    path = folder / "kubeconfig.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "tests",
                "contexts": [{"name": "tests", "context": names}],
                "clusters": [{"name": "tests", "cluster": {"server": server.url}}],
                "users": [{"name": "tests", "user": {}}],
            }
        )
    )
    return path


def client_at(url: str) -> Client:
    config = KubeConfig.from_one(cluster=Cluster(server=url), user=User())
    return Client(config, namespace=NAMESPACE, timeout=httpx2.Timeout(5.0))


@dataclass
class ClusterScene(Scene):
    """A gateway of a cluster; what is stored is read where the API server keeps it."""

    server: ApiServer = field(kw_only=True)

    def begin(self, plan: dict[str, Any] | None = None, to: int = 2) -> Rollout:
        values = Plan.model_validate(FAST if plan is None else plan).model_dump(mode="json")
        self.server.create(
            "modelrollouts",
            {
                "apiVersion": "sluice.dev/v1alpha1",
                "kind": "ModelRollout",
                "metadata": {"name": f"digits-{to}", "namespace": NAMESPACE},
                "spec": {"model": "digits", "version": to, "plan": values},
            },
        )
        return self.rollout

    @property
    def rollout(self) -> Rollout:
        """The newest; pending until a gateway has looked at it."""
        name = max(name for kind, name in list(self.server.objects) if kind == "modelrollouts")
        found = self.server.get("modelrollouts", name)
        if "status" in found:
            return from_json(found["status"]["state"])
        plan = Plan.model_validate(found["spec"]["plan"])
        return Rollout(name, "digits", 1, found["spec"]["version"], plan, 0.0)


@asynccontextmanager
async def cluster_scene(
    server: ApiServer,
    prometheus: Scraper,
    *replicas: VersionedReplica,
    over: list[VersionedReplica] | None = None,
    callers: int = 2,
) -> AsyncIterator[ClusterScene]:
    """A gateway over replicas, its own or another scene's; KUBECONFIG must name the API server."""
    values: dict[str, Any] = {
        "rollout_namespace": NAMESPACE,
        "prometheus_url": prometheus.url,
        "prometheus_selector": SELECTOR,
        "rollout_interval_s": 0.2,
    }
    async with AsyncExitStack() as stack:
        up: list[FakeReplica] = [await stack.enter_async_context(running(each)) for each in replicas]
        up += over or []
        gateway, client = await stack.enter_async_context(gateway_over(*up, **values))
        prometheus.gateways.append(gateway.http_url)
        stack.callback(prometheus.gateways.remove, gateway.http_url)
        loaded = Settings(http_port=0, grpc_port=0, **values)
        upstream = Upstream(tuple(each.address for each in up), ("digits",), Path("/nowhere"))
        await stack.enter_async_context(_rollouts_of(loaded, gateway, upstream))
        store = KubernetesStore(client_at(server.url))
        scene = ClusterScene(gateway, client, list(replicas), store, server=server)
        await until(lambda: "digits" in gateway.gateway.steering.splits())
        # All of it shares one process with the API server and Prometheus: callers leave them time.
        async with beside(ask_for_ever(scene, callers, pause_s=0.02)):
            yield scene

"""What the metrics page says, in which formats, and how large it is."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from serving import metrics_page
from serving.commands.serve import SAMPLE
from serving.errors import all_kinds
from serving.journal import Journal
from serving.prediction import RequestContext
from serving.routing import Route, Split
from serving.telemetry.drift import MOST_GROUPS
from serving.telemetry.logs import AccessLog
from serving.telemetry.scrape import exposition
from tests.support.fake_replica import FakeReplica, running
from tests.support.gateways import gateway_over

PATH = "/v1/models/digits:classify"
PNG = {"content-type": "image/png"}


def test_the_page_of_docs_is_what_the_code_says() -> None:
    assert metrics_page.TARGET.read_text() == metrics_page.page()


def test_the_page_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_page, "TARGET", tmp_path / "metrics.md")
    metrics_page.main()
    assert (tmp_path / "metrics.md").read_text() == metrics_page.page()


def test_names_follow_the_conventions() -> None:
    families = [family for family, _ in metrics_page.families() if family.name.startswith("sluice_")]
    assert len(families) > 40
    for family in families:
        assert re.fullmatch(r"sluice(_[a-z]+)+", family.name)
        assert family.documentation.endswith(".")
        assert not family.name.endswith(("_total", "_count", "_sum", "_bucket", "_milliseconds", "_ms"))
        if "duration" in family.name:
            assert family.name.endswith("_seconds")


async def test_each_metric_that_has_no_labels_is_there_from_the_start() -> None:
    """An alert on one that comes with the first mishap would not see that one."""
    async with running(FakeReplica()) as replica, gateway_over(replica) as (up, _client):
        found = {family.name: family.samples for family in up.gateway.metrics.registry.collect()}
    bare = {family.name for family, labels in metrics_page.families() if not labels}
    bare -= {"sluice_tls_certificate_expiry_timestamp_seconds"}  # of a gateway with TLS only
    bare -= {"sluice_rollout_look_failures"}  # of a gateway with rollouts only
    assert len(bare) > 15
    assert [name for name in bare if not found.get(name)] == []


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text; version=1.0.0"])
async def test_the_page_parses_in_both_formats_and_has_exemplars_in_one(accept: str) -> None:
    async with running(FakeReplica()) as replica, gateway_over(replica) as (_, client):
        trace_id = "0af7651916cd43dd8448eb211c80319c"
        traced = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
        assert (await client.post(PATH, content=SAMPLE.read_bytes(), headers=PNG | traced)).status_code == 200
        got = await client.get("/metrics", headers={"accept": accept})
        parse = openmetrics if "openmetrics" in accept else plain
        families = {family.name: family for family in parse(got.text)}
        exemplars = [
            sample.exemplar.labels if sample.exemplar else {}
            for name in ("sluice_requests", "sluice_request_duration_seconds")
            for sample in families[name].samples
            if sample.exemplar
        ]
        assert exemplars == ([{"trace_id": trace_id}] * 2 if "openmetrics" in accept else [])
        assert ("openmetrics" in got.headers["content-type"]) == ("openmetrics" in accept)
        assert not any("_created" in line for line in got.text.splitlines())


async def test_five_models_with_three_versions_of_a_thousand_classes_stay_small() -> None:
    names = tuple(f"model-{index}" for index in range(5))
    labels = tuple(f"class-{index}" for index in range(1000))
    card = {"training": {"class_distribution": [0.001] * 1000}}
    replica = FakeReplica(versions={name: {1, 2, 3} for name in names})
    async with running(replica), gateway_over(replica, models=names) as (up, client):
        gateway = up.gateway
        journal = Journal(gateway.metrics, AccessLog(0.0, clock=lambda: 0.0))
        for name in names:
            gateway.steering.set_split(name, Split(1, 2, 0.5, 1.0, "salt"), 0.1)
            known = gateway.catalog._known[name]
            for version in (1, 2, 3):
                known[version] = replace(known[version], labels=labels, card=card)
                gateway.metrics.predicted(name, version, labels, card, range(1000))
                gateway.metrics.images.labels(name, str(version)).inc()
                end_requests(journal, name, version)
            for label in labels:
                found = gateway.steering._models[name]
                gateway.steering._add(found, f"compared/2/{label}")
                gateway.steering._add(found, f"agreed/2/{label}")
            for reason in ("idle", "freed", "full"):
                journal.batch_left(name, 3, reason)
        spent_s = []
        for _ in range(5):
            began = time.perf_counter()
            page, _ = exposition(gateway.metrics.registry, "")
            spent_s.append(time.perf_counter() - began)
        assert (await client.get("/metrics")).status_code == 200
    series = [line for line in page.decode().splitlines() if not line.startswith("#")]
    print(f"{len(series)} series in {min(spent_s) * 1000:.0f} ms")
    assert 1000 < len(series) <= 3000
    of_one = [line for line in series if re.match(r'sluice_predictions_total.*"model-0",version="1"', line)]
    assert len(of_one) == MOST_GROUPS
    compared = [line for line in series if line.startswith("sluice_shadow_compared_total")]
    assert len(compared) == 5 * MOST_GROUPS
    assert sum(float(line.rpartition(" ")[2]) for line in compared) == 5 * len(labels)


def end_requests(journal: Journal, name: str, version: int) -> None:
    """Requests of a version that end in five ways, over both protocols."""
    for protocol in ("http", "grpc"):
        for kind in (None, *all_kinds()[:4]):
            context = RequestContext("id", protocol, 0.0, answered_by=(name, str(version)))
            context.route = Route(version, "stable", None)
            journal._ended(context, name, None if kind is None else kind("no"), 0.1)
            journal.stage(context, "decode", 0.01)

"""What the metrics page says, how large it is, and what becomes of a request besides its answer."""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from serving import metrics_page
from serving.commands.serve import SAMPLE
from serving.errors import InvalidInput, Overloaded, Unavailable, all_kinds
from serving.journal import Journal
from serving.observed import exposition
from serving.prediction import RequestContext
from serving.rollout.desk import Desk
from serving.rollout.feedback import Receipts
from serving.rollout.plan import Plan
from serving.rollout.record import Rollout
from serving.rollout.store import FileStore
from serving.routing import Route, Split
from serving.telemetry.drift import (
    LEAST_PREDICTIONS,
    MOST_GROUPS,
    OTHER,
    PredictedClasses,
    group_classes,
    stability_index,
)
from serving.telemetry.logs import MAX_FAILURES_PER_S, AccessLog
from serving.telemetry.metrics import GRACE_S, Metrics
from serving.telemetry.tracing import child_of
from tests.rollout.stored import new_rollout
from tests.support.fake_replica import FakeReplica, running, until
from tests.support.gateways import counted, gateway_over

PATH = "/v1/models/digits:classify"
PNG = {"content-type": "image/png"}
CARD = {"training": {"class_distribution": [0.5, 0.3, 0.2]}}
LABELS = ("a", "b", "c")


def test_the_page_of_docs_is_what_the_code_says() -> None:
    assert metrics_page.TARGET.read_text() == metrics_page.page()


def test_names_follow_the_conventions() -> None:
    families = [family for family, _ in metrics_page.families() if family.name.startswith("sluice_")]
    assert len(families) > 40
    for family in families:
        assert re.fullmatch(r"sluice(_[a-z]+)+", family.name)
        assert family.documentation.endswith(".")
        assert not family.name.endswith(("_total", "_count", "_sum", "_bucket", "_milliseconds", "_ms"))
        if "duration" in family.name:
            assert family.name.endswith("_seconds")


async def test_the_path_of_a_request_is_measured_by_stage_arm_and_class() -> None:
    async with running(FakeReplica()) as replica, gateway_over(replica) as (up, client):
        answer = await client.post(PATH, content=SAMPLE.read_bytes(), headers=PNG)
        assert answer.status_code == 200
        timing = dict(re.findall(r"(\w+);dur=([\d.]+)", answer.headers["server-timing"]))
        assert set(timing) == {"admission", "read", "decode", "queue", "backend", "total"}
        parts = sum(float(spent) for name, spent in timing.items() if name != "total")
        assert 0 < parts <= float(timing["total"]) * 1.05
        for stage in ("admission", "read", "decode", "queue", "backend"):
            assert counted(up, "sluice_stage_duration_seconds_count", stage=stage) == 1
        assert counted(up, "sluice_batches_total", model="digits", reason="idle") == 1
        best = answer.json()["results"][0]["classes"][0]["label"]
        labels = {"model": "digits", "version": "1", "class": best}
        assert counted(up, "sluice_predictions_total", **labels) == 1
        assert counted(up, "sluice_requests_in_flight_limit") == up.gateway.settings.max_in_flight
        await until(lambda: counted(up, "sluice_requests_in_flight") == 0)
        assert counted(up, "sluice_model_version_state", model="digits", state="AVAILABLE") == 1
        assert counted(up, "sluice_replica_breaker_open", replica=replica.address) == 0
        up.pool.replicas[0].outcomes.eject(time.monotonic())
        assert counted(up, "sluice_replica_breaker_open", replica=replica.address) == 1


async def test_what_is_not_known_yet_is_left_out_and_what_never_happened_is_zero() -> None:
    async with running(FakeReplica()) as replica, gateway_over(replica) as (up, client):
        up.pool.replicas[0].latency_s = 0.0  # as before its first call
        up.gateway.steering.set_split("digits", Split(1, 2, 0.5, 1.0, "salt"), 0.1)
        for kind, times in (("compared/1/class-3", 1), ("candidate-failed/1", 2), ("stable-failed/1", 3)):
            for _ in range(times):
                up.gateway.steering._add(up.gateway.steering._models["digits"], kind)
        before = (await client.get("/metrics")).text
        assert (await client.post(PATH, content=SAMPLE.read_bytes(), headers=PNG)).status_code == 200
        after = (await client.get("/metrics")).text
    of_class = '{class="class-3",model="digits",version="1"}'
    assert f"\nsluice_shadow_compared_total{of_class} 1.0\n" in before
    assert f"\nsluice_shadow_agreed_total{of_class} 0.0\n" in before
    for arm, times in (("candidate", 2), ("stable", 3)):
        of_arm = f'{{arm="{arm}",model="digits",version="1"}}'
        assert f"\nsluice_shadow_failures_total{of_arm} {times}.0\n" in before
    assert "\nsluice_replica_latency_seconds{" not in before
    assert "\nsluice_replica_latency_seconds{" in after


async def test_what_a_gateway_holds_is_told_while_it_holds_it() -> None:
    release, entered = asyncio.Event(), asyncio.Event()

    async def held(_request: Any) -> None:
        entered.set()
        await release.wait()

    names = "sluice_requests_in_progress", "sluice_request_body_bytes", "sluice_replica_calls_in_flight"
    body = SAMPLE.read_bytes()
    async with running(FakeReplica(before_predict=held)) as replica, gateway_over(replica) as (up, client):
        asked = asyncio.create_task(client.post(PATH, content=body, headers=PNG))
        await entered.wait()
        assert [counted(up, name) for name in names] == [1, len(body), 1]
        release.set()
        assert (await asked).status_code == 200
        await until(lambda: [counted(up, name) for name in names] == [0, 0, 0])
        most, most_bytes = up.gateway.admission.limits
        assert counted(up, "sluice_requests_in_flight_limit") == most
        assert counted(up, "sluice_request_body_limit_bytes") == most_bytes
        in_progress_limit = counted(up, "sluice_requests_in_progress_limit", model="digits")
        assert (0, in_progress_limit) == up.gateway.admission.progress_of("digits")


async def test_each_metric_that_has_no_labels_is_there_from_the_start() -> None:
    """An alert on one that comes with the first mishap would not see that one."""
    async with running(FakeReplica()) as replica, gateway_over(replica) as (up, _client):
        found = {family.name: family.samples for family in up.gateway.metrics.registry.collect()}
    bare = {family.name for family, labels in metrics_page.families() if not labels}
    bare -= {"sluice_tls_certificate_expiry_timestamp_seconds"}  # of a gateway with TLS only
    bare -= {"sluice_rollout_look_failures"}  # of a gateway with rollouts only
    assert len(bare) > 15
    assert [name for name in bare if not found.get(name)] == []


async def test_what_is_refused_by_its_headers_or_path_is_counted_once() -> None:
    async with running(FakeReplica()) as replica, gateway_over(replica) as (up, client):
        for headers in ({"x-request-timeout": "soon"}, {"x-request-timeout": "-1"}):
            assert (await client.post(PATH, content=b"x", headers=PNG | headers)).status_code == 400
        assert (await client.post("/v1/models/digits:sing", content=b"x")).status_code == 400
        assert (await client.get("/healthz")).status_code == 200
        assert counted(up, "sluice_requests_total", outcome="invalid-input", protocol="http") == 3
        assert counted(up, "sluice_requests_total") == 3
        assert len(up.gateway.journal.refusals) == 3


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


class NotingDesk(Desk):
    """A desk that notes how often its store is read, and in which threads; and whose store may be away."""

    away = False
    reads = 0

    def newest(self) -> list[Rollout]:
        assert threading.current_thread() is not threading.main_thread(), "the event loop waits for a disk"
        self.reads += 1
        if self.away:
            raise Unavailable("the API server of the cluster has not answered yet")
        return [new_rollout()]


async def test_a_scrape_waits_for_no_store_and_tells_what_was_known_while_it_is_away(tmp_path: Path) -> None:
    async with running(FakeReplica()) as replica, gateway_over(replica) as (up, client):

        async def info() -> bool:
            got = await client.get("/metrics")
            assert got.status_code == 200
            assert "\nsluice_requests_in_flight 0.0\n" in got.text
            seen = "\nsluice_rollout_seen_timestamp_seconds{" in got.text
            assert seen == ("\nsluice_rollout_info{" in got.text)
            return seen

        receipts = Receipts(b"key", up.gateway.steering, up.gateway.steering.memory)
        up.gateway.desk = desk = NotingDesk(FileStore(tmp_path), receipts, Plan())
        desk.away = True
        await until(lambda: desk.reads > 0)
        assert not await info()
        desk.away = False
        async with asyncio.timeout(60):
            while not await info():
                await asyncio.sleep(0.05)
        desk.away, reads = True, desk.reads
        await until(lambda: desk.reads > reads)
        assert await info()


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


def end_requests(journal: Journal, name: str, version: int) -> None:
    """Requests of a version that end in five ways, over both protocols."""
    for protocol in ("http", "grpc"):
        for kind in (None, *all_kinds()[:4]):
            context = RequestContext("id", protocol, 0.0, answered_by=(name, str(version)))
            context.route = Route(version, "stable", None)
            journal._ended(context, name, None if kind is None else kind("no"), 0.1)
            journal.stage(context, "decode", 0.01)


def test_classes_are_grouped_alike_everywhere() -> None:
    labels = tuple(map(str, range(100)))
    shares = [0.0] * 100
    shares[70], shares[30] = 0.6, 0.4
    groups = group_classes(labels, shares)
    assert groups == group_classes(labels, list(shares))
    assert (groups[70], groups[30], groups[99]) == ("70", "30", OTHER)
    assert len(set(groups)) == MOST_GROUPS
    assert group_classes(labels[:20], None) == labels[:20]


def test_a_shift_shows_and_chance_does_not() -> None:
    rng = random.Random(3)
    expected = [0.5, 0.3, 0.2]
    same, shifted = PredictedClasses(LABELS, expected), PredictedClasses(LABELS, expected)
    for _ in range(3000):
        same.add(rng.choices(range(3), expected))
        shifted.add(rng.choices(range(3), [0.1, 0.2, 0.7]))
    assert (same.index() or 0) < 0.02
    assert (shifted.index() or 0) > 0.25
    # By hand: (0.4 - 0.5) ln(0.4 / 0.5) + (0.6 - 0.5) ln(0.6 / 0.5), with half a prediction in each group.
    assert stability_index([0.5, 0.5], [400_000, 600_000]) == pytest.approx(0.040547, abs=1e-4)
    # (0.25 - 0.5) ln(0.25 / 0.5) + (0.75 - 0.5) ln(0.75 / 0.5): half a prediction tells where there are few.
    assert stability_index([0.5, 0.5], [0, 1]) == pytest.approx(0.27465, abs=1e-4)


def test_nothing_is_said_of_too_few_predictions_or_without_a_card() -> None:
    few, blind = PredictedClasses(LABELS, [0.5, 0.3, 0.2]), PredictedClasses(LABELS, None)
    few.add([0] * (LEAST_PREDICTIONS - 1))
    blind.add([0] * 5000)
    assert few.index() is None
    assert blind.index() is None
    few.add([0])
    assert (few.index() or 0) > 0.25
    assert PredictedClasses(LABELS, [1.0]).index() is None
    many = PredictedClasses([str(number) for number in range(20)], [0.05] * 20)
    many.add([*range(20)] * 19)
    assert many.index() is None, "chance alone makes a twentieth of it here"
    many.add(range(20))
    assert many.index() is not None


@given(st.lists(st.integers(0, 500), min_size=2, max_size=25))
def test_the_index_is_never_negative(counts: list[int]) -> None:
    expected = [1 / len(counts)] * len(counts)
    assert stability_index(expected, counts) >= 0


def test_the_index_forgets() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.predicted("m", 1, LABELS, CARD, [2] * 3000)
    assert metrics.drift()["m", "1"] > 0.25
    for _ in range(300):
        metrics.predicted("m", 1, LABELS, CARD, [0, 0, 0, 0, 0, 1, 1, 1, 2, 2])
    assert metrics.drift()["m", "1"] < 0.02


def test_the_series_of_a_version_end_a_while_after_it_left() -> None:
    metrics = Metrics(CollectorRegistry())
    for version in (1, 2):
        metrics.predicted("m", version, LABELS, CARD, [0] * LEAST_PREDICTIONS)
        metrics.requests.labels("http", "m", str(version), "", "ok").inc()
        metrics.request_seconds.labels("http", "m", str(version)).observe(0.1)
    metrics.requests.labels("http", "", "", "", "not-found").inc()
    metrics.present([("m", "1"), ("m", "2")], 0.0)

    def versions() -> set[str]:
        page, _ = exposition(metrics.registry, "")
        return set(re.findall(r'version="(\d)"', page.decode())) | {version for _, version in metrics.drift()}

    metrics.present([("m", "2")], GRACE_S)
    assert versions() == {"1", "2"}
    assert not metrics.has_left("m", "1")
    metrics.present([("m", "2")], GRACE_S + 1)
    assert versions() == {"2"}
    assert metrics.has_left("m", "1")
    page, _ = exposition(metrics.registry, "")
    assert 'outcome="not-found"' in page.decode()


def logged(log: AccessLog, failures: int, answers: int) -> list[Any]:
    context = RequestContext("id-1", "http", 0.0, credential="sluice_secret", trace=child_of("", 1.0))
    context.stages_s["decode"] = 0.002
    context.route = Route(2, "candidate", None)
    with structlog.testing.capture_logs() as lines:
        for _ in range(failures):
            log.ended(context, "digits", "1", Overloaded("full", stage="admission"), 0.1)
        for _ in range(answers):
            log.ended(context, "digits", "1", None, 0.1)
    return lines


def test_the_log_takes_a_share_of_answers_and_bounds_failures() -> None:
    now = 100.0
    log = AccessLog(0.1, clock=lambda: now, rng=random.Random(1))
    lines = logged(log, failures=50, answers=1000)
    failed = [line for line in lines if line["outcome"] == "overloaded"]
    assert len(failed) == MAX_FAILURES_PER_S
    assert {(line["stage"], line["arm"], "suppressed" in line) for line in failed} == {
        ("admission", "candidate", False)
    }
    assert 70 <= len(lines) - len(failed) <= 130
    now = 101.0
    (later,) = logged(log, failures=1, answers=0)
    assert later["suppressed"] == 50 - MAX_FAILURES_PER_S
    assert later["decode_s"] == 0.002
    assert re.fullmatch(r"[0-9a-f]{32}", later["trace_id"])
    assert "sluice_secret" not in json.dumps(lines)


def test_no_answer_is_logged_where_none_is_wanted() -> None:
    assert logged(AccessLog(0.0), failures=0, answers=100) == []
    assert len(logged(AccessLog(1.0), failures=0, answers=100)) == 100


async def test_the_page_shows_the_latest_refusals_newest_first() -> None:
    async with running(FakeReplica()) as replica, gateway_over(replica) as (_, client):
        for name in ("a", "b"):
            await client.post(f"/v1/models/{name}:classify", content=b"x", headers=PNG)
        state: dict[str, Any] = (await client.get("/page/state")).json()
        first, second = state["refusals"]
        assert (first["outcome"], first["model"]) == ("not-found", "")
        assert first["at"] >= second["at"]
        assert '"b"' in first["text"]
        (model,) = state["models"]
        assert model["serving"] == 1
        assert model["input"]["channels"] in (1, 3)


async def test_the_page_stands_whatever_text_a_refusal_has() -> None:
    """JSON may name half of a surrogate pair, and an error quote it: no UTF-8 carries that."""
    async with running(FakeReplica()) as replica, gateway_over(replica) as (up, client):
        up.gateway.journal.refused_early("http", "id", InvalidInput('there is no signature "\ud800"'))
        (refusal,) = (await client.get("/page/state")).json()["refusals"]
        assert refusal["text"] == 'there is no signature "?"'
        up.gateway.journal.refused_early("http", "id", InvalidInput("x" * 1000))
        assert (await client.get("/page/state")).json()["refusals"][0]["text"] == "x" * 200 + "…"


class ClosedDesk:
    """The desk of a gateway whose rollouts cannot be read."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def newest(self) -> list[Any]:
        raise self._error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Unavailable("the API server is away"), "the API server is away"),
        (OSError(5, "I/O error", "/a"), "I/O error"),
    ],
)
async def test_the_page_stands_while_rollouts_cannot_be_read(error: Exception, told: str) -> None:
    async with running(FakeReplica()) as replica, gateway_over(replica) as (up, client):
        assert (await client.get("/page/state")).json()["rollouts_gap"] is None
        up.gateway.desk = ClosedDesk(error)  # type: ignore[assignment]  # it is asked for nothing else
        state = (await client.get("/page/state")).json()
        assert (state["rollouts"], state["rollouts_gap"]) == ([], told)
        assert [each["name"] for each in state["models"]] == ["digits"]


async def test_an_address_that_is_no_page_is_a_problem_document() -> None:
    async with running(FakeReplica()) as replica, gateway_over(replica) as (_, client):
        assert (await client.get("/")).headers["content-type"].startswith("text/html")
        missing: httpx.Response = await client.get("/page/none.js")
        assert missing.status_code == 404
        assert missing.json()["type"] == "urn:sluice:problem:not-found"

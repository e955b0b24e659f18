"""What is measured of requests and their way, and what a gateway holds meanwhile."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from typing import Any

import pytest

from serving.commands.serve import SAMPLE
from serving.routing import Split
from serving.telemetry import logs
from tests.support.fake_replica import FakeReplica, running, until
from tests.support.gateways import counted, gateway_over

PATH = "/v1/models/digits:classify"
PNG = {"content-type": "image/png"}


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
        assert counted(up, "sluice_batch_size_count", model="digits") == 1
        assert counted(up, "sluice_batch_size_sum", model="digits") == 1
        best = answer.json()["results"][0]["classes"][0]["label"]
        labels = {"model": "digits", "version": "1", "class": best}
        assert counted(up, "sluice_predictions_total", **labels) == 1
        assert counted(up, "sluice_requests_in_flight_limit") == up.gateway.settings.max_in_flight
        await until(lambda: counted(up, "sluice_requests_in_flight") == 0)
        assert counted(up, "sluice_model_version_state", model="digits", state="AVAILABLE") == 1
        assert counted(up, "sluice_model_version_state", model="digits") == 1
        assert counted(up, "sluice_replica_breaker_open", replica=replica.address) == 0
        up.pool.replicas[0].outcomes.eject(time.monotonic())
        assert counted(up, "sluice_replica_breaker_open", replica=replica.address) == 1


async def test_a_call_with_tensors_is_measured_by_stage() -> None:
    async with running(FakeReplica()) as replica, gateway_over(replica) as (up, client):
        answer = await client.post("/v1/models/digits:predict", json={"instances": [[[[0]] * 8] * 8]})
        assert answer.status_code == 200, answer.text
        for stage, times in (("admission", 1), ("read", 1), ("backend", 1), ("queue", 0)):
            assert counted(up, "sluice_stage_duration_seconds_count", stage=stage) == times, stage


async def test_of_a_request_that_is_answered_in_parts_the_body_is_read_once() -> None:
    body = {"images": [base64.b64encode(SAMPLE.read_bytes()).decode()] * 3}
    async with running(FakeReplica()) as replica, gateway_over(replica, max_batch=1) as (up, client):
        answer = await client.post(PATH, json=body, headers={"accept": "application/x-ndjson"})
        assert len(answer.text.splitlines()) == 3, answer.text
        for stage, times in (("admission", 1), ("read", 1), ("decode", 3), ("backend", 3)):
            assert counted(up, "sluice_stage_duration_seconds_count", stage=stage) == times, stage


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (PATH, {"content": SAMPLE.read_bytes(), "headers": PNG}),
        ("/v1/models/digits:predict", {"json": {"instances": [[[[0]] * 8] * 8]}}),
    ],
    ids=("images", "tensors"),
)
async def test_how_much_may_be_in_progress_is_learned_from_every_kind_of_call(
    path: str, body: dict[str, Any]
) -> None:
    release = asyncio.Event()

    async def held(_request: Any) -> None:
        await release.wait()

    async with (
        running(FakeReplica(before_predict=held)) as replica,
        gateway_over(replica, target_latency_s=0.001, max_batch=1, max_in_flight=100) as (up, client),
    ):
        admission = up.gateway.admission
        assert admission.progress_of("digits") == (0, 50)
        asked = [asyncio.create_task(client.post(path, **body)) for _ in range(4)]
        await until(lambda: admission.in_progress == 4)
        await asyncio.sleep(0.01)  # longer than they should take
        release.set()
        await asyncio.gather(*asked)
        assert admission.progress_of("digits") == (0, 2)


async def test_what_is_not_known_yet_is_left_out_and_what_never_happened_is_zero() -> None:
    async with running(FakeReplica()) as replica, gateway_over(replica) as (up, client):
        up.pool.replicas[0].latency_s = 0.0  # as before its first call
        up.gateway.steering.set_split("digits", Split(1, 2, 0.5, 1.0, "salt"), 0.1)
        counts = ("compared/1/class-3", 1), ("candidate-failed/1", 2), ("stable-failed/1", 3), ("calls/9", 1)
        for kind, times in counts:
            for _ in range(times):
                up.gateway.steering._add(up.gateway.steering._models["digits"], kind)
        before = (await client.get("/metrics")).text
        assert (await client.post(PATH, content=SAMPLE.read_bytes(), headers=PNG)).status_code == 200
        after = (await client.get("/metrics")).text
    assert 'version="9"' not in before, "of a version that is nowhere nothing is told"
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


async def test_how_many_images_wait_is_told_while_they_do() -> None:
    release, entered = asyncio.Event(), asyncio.Event()

    async def held(_request: Any) -> None:
        entered.set()
        await release.wait()

    async with (
        running(FakeReplica(before_predict=held)) as replica,
        gateway_over(replica, calls_per_replica=1) as (up, client),
    ):
        posts = [client.post(PATH, content=SAMPLE.read_bytes(), headers=PNG) for _ in range(3)]
        asked = [asyncio.create_task(each) for each in posts]
        await entered.wait()
        await until(lambda: counted(up, "sluice_queue_depth", model="digits") == 2)
        assert up.gateway.steering.busy(), "no copy is made for a rollout while callers wait"
        release.set()
        assert {answer.status_code for answer in await asyncio.gather(*asked)} == {200}
        assert counted(up, "sluice_queue_depth", model="digits") == 0
        assert not up.gateway.steering.busy()


async def test_what_other_parts_count_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(FakeReplica()) as replica, gateway_over(replica) as (up, _client):
        monkeypatch.setattr(logs.STDERR, "lost", 3)
        up.gateway.steering.memory.failures = 4
        up.pool.retries, up.pool.hedges = 5, 6
        assert counted(up, "sluice_log_lines_lost_total") == 3
        assert counted(up, "sluice_feedback_store_failures_total") == 4
        assert counted(up, "sluice_replica_calls_retried_total") == 5
        assert counted(up, "sluice_replica_calls_hedged_total") == 6


async def test_what_is_refused_by_its_headers_or_path_is_counted_once() -> None:
    async with running(FakeReplica()) as replica, gateway_over(replica) as (up, client):
        for headers in ({"x-request-timeout": "soon"}, {"x-request-timeout": "-1"}):
            assert (await client.post(PATH, content=b"x", headers=PNG | headers)).status_code == 400
        assert (await client.post("/v1/models/digits:sing", content=b"x")).status_code == 400
        assert (await client.get("/healthz")).status_code == 200
        assert counted(up, "sluice_requests_total", outcome="invalid-input", protocol="http") == 3
        assert counted(up, "sluice_requests_total") == 3
        assert len(up.gateway.journal.refusals) == 3


async def test_who_names_no_model_is_counted_under_the_default_one_also_where_no_version_is_reached() -> None:
    async with running(FakeReplica()) as replica, gateway_over(replica, max_in_flight=1) as (up, client):
        with up.gateway.admission.admit(None, "classify"):
            for path in ("/v1/classify", PATH, "/v1/models/other:classify"):
                answer = await client.post(path, content=SAMPLE.read_bytes(), headers=PNG)
                assert answer.status_code == 503
        asked = {
            model: counted(up, "sluice_requests_total", model=model, outcome="overloaded")
            for model in ("digits", "")
        }
    assert asked == {"digits": 2, "": 1}

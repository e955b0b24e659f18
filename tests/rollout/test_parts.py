"""The controller's parts: quiet hours, preflight, holdings, counts, and Prometheus as their source."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from serving import errors, protos, tensors
from serving.arms import measured
from serving.backends.tfserving import TensorFlowServing, VersionStatus
from serving.errors import Unavailable
from serving.main import new_metrics
from serving.model_version import ModelVersion
from serving.prediction import RequestContext
from serving.rollout.counts import Counts, grown, remembered
from serving.rollout.fleet import Seen, holdings, replicas_verdict
from serving.rollout.leader import FolderCounts
from serving.rollout.machine import Phase, State, advance, command
from serving.rollout.plan import Plan, Step
from serving.rollout.preflight import incompatible, preflight_verdict, relabelled, self_tested
from serving.rollout.prometheus import PRESENCE, PrometheusCounts, SteeringCollector
from serving.rollout.quiet import is_quiet
from serving.rollout.record import Rollout
from serving.rollout.steering import Steering
from serving.rollout.verdict import Outcome, Reason
from serving.routing import Route, Split
from tests.rollout.replicas import VersionedReplica
from tests.rollout.stored import new_rollout
from tests.support.fake_replica import running, until
from tests.support.processes import started


@pytest.mark.parametrize(
    ("at", "quiet"),
    [
        ("2026-11-20T21:59", False),  # a Friday, in Berlin an hour later
        ("2026-11-20T22:00", True),
        ("2026-11-20T22:30", True),
        ("2026-11-21T04:59", True),  # the morning after still is Friday's night
        ("2026-11-21T05:00", False),
        ("2026-11-21T22:30", False),  # Saturday's night is not named
    ],
)
def test_quiet_hours_over_midnight(at: str, quiet: bool) -> None:
    hours = {"days": ["fri"], "start": "23:00", "end": "06:00", "timezone": "Europe/Berlin"}
    plan = Plan.model_validate({"quiet_hours": [hours]})
    assert is_quiet(plan, datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp()) == quiet


def test_quiet_hours_of_a_day_end_before_their_end() -> None:
    plan = Plan.model_validate({"quiet_hours": [{"days": ["fri"], "start": "09:00", "end": "17:00"}]})
    times = (
        "2026-11-20T08:59",
        "2026-11-20T09:00",
        "2026-11-20T16:59",
        "2026-11-20T17:00",
        "2026-11-21T12:00",
    )
    found = [is_quiet(plan, datetime.fromisoformat(f"{each}+00:00").timestamp()) for each in times]
    assert found == [False, True, True, False, False]


def test_the_same_start_and_end_are_a_whole_day() -> None:
    hours = {"days": ["sat"], "start": "00:00", "end": "00:00"}
    plan = Plan.model_validate({"quiet_hours": [hours]})
    times = ("2026-11-20T23:59", "2026-11-21T00:00", "2026-11-21T23:59", "2026-11-22T00:00")
    found = [is_quiet(plan, datetime.fromisoformat(f"{each}+00:00").timestamp()) for each in times]
    assert found == [False, True, True, False]


def signature(**changes: Any) -> dict[str, Any]:
    """An image classifier's `serving_default` with changes: name -> dtype and shape of an input or output."""
    found = protos.SignatureDef()
    sides = {"images": found.inputs, "scores": found.outputs}
    tensors_ = {"images": (np.uint8, (-1, 8, 8, 1)), "scores": (np.float32, (-1, 10))} | changes
    for name, (dtype, shape) in tensors_.items():
        info = sides.get(name, found.outputs)[name]
        info.dtype = tensors.data_type_of(np.dtype(dtype))
        for size in shape:
            info.tensor_shape.dim.add(size=size)
    return {"serving_default": found}


@pytest.mark.parametrize(
    ("candidate", "fault"),
    [
        (signature(), None),
        (signature(extra=(np.float32, (-1, 3))), None),
        ({}, 'it has no signature "serving_default"'),
        (signature(images=(np.float32, (-1, 8, 8, 1))), '"images" has another type'),
        (signature(images=(np.uint8, (-1, 9, 9, 1))), "has shape [-1, 9, 9, 1] instead of [-1, 8, 8, 1]"),
        (signature(scores=(np.float32, (-1, 11))), '"scores" has shape'),
    ],
)
def test_signatures_that_callers_of_stable_can_or_cannot_use(
    candidate: dict[str, Any], fault: str | None
) -> None:
    found = incompatible(signature(), candidate)
    if fault is None:
        assert found == []
    else:
        assert fault in found[0]


def test_labels() -> None:
    assert relabelled(["a", "b"], ["a", "b"]) is None
    assert relabelled(["a", "b"], ["b", "a"]) == "it names the same classes in another order"
    assert relabelled(["a", "b"], ["a", "c"]) == "it does not name the classes b"


@pytest.mark.parametrize(
    ("expected", "actual", "difference"),
    [
        ([[0.1, 0.9], [0.5, 0.5]], [[0.1, 0.9], [0.503, 0.5]], None),
        ([[0.1, 0.9], [0.5, 0.5]], [[0.1, 0.9], [0.51, 0.5]], 0.01),
        ([[400.0, 0.5], [300.0, 0.5]], [[401.0, 0.5], [300.0, 0.503]], None),
        ([[400.0, 0.5], [300.0, 0.5]], [[404.0, 0.5], [300.0, 0.5]], 0.01),
        ([[400.0, 0.5], [300.0, 0.5]], [[400.0, 0.51], [300.0, 0.5]], 0.01),
        ([[0.1, 0.9]], [[np.nan, 0.9]], np.nan),
    ],
)
async def test_a_self_test_is_held_against_the_size_of_each_output(
    expected: list[list[float]], actual: list[list[float]], difference: float | None
) -> None:
    class Api:
        address = "a replica"

        async def predict(self, _request: Any, _timeout_s: float) -> Any:
            response = protos.PredictResponse()
            for name, rows in (("expected", expected), ("actual", actual)):
                response.outputs[name].CopyFrom(tensors.to_proto(np.array(rows, np.float32)))
            return response

    found = await self_tested(cast("TensorFlowServing", Api()), "digits", 2, Plan().preflight)
    told = [each.values["difference"] for each in found if each.code == "preflight.self-test"]
    assert told == pytest.approx([] if difference is None else [difference], abs=1e-5, nan_ok=True)


def test_a_preflight_waits_for_replicas_and_fails_for_one() -> None:
    away = errors.Unavailable("away")
    assert preflight_verdict({}, 1).outcome is Outcome.WAIT
    assert preflight_verdict({"a": away}, 1).outcome is Outcome.WAIT
    assert preflight_verdict({"a": [], "b": away}, 1).outcome is Outcome.PASSED
    assert preflight_verdict({"a": [], "b": away}, 2).outcome is Outcome.WAIT
    assert preflight_verdict({"a": [], "b": [Reason("preflight.slow", "slow")]}, 1).outcome is Outcome.FAIL


def replicas(*holding: set[int], failed: frozenset[int] = frozenset()) -> list[Seen]:
    return [
        Seen(
            f"replica-{index}",
            True,
            {version: VersionStatus("AVAILABLE") for version in versions}
            | {version: VersionStatus("END", "damaged") for version in failed},
        )
        for index, versions in enumerate(holding)
    ]


def in_phase(phase: Phase, **plan: Any) -> Rollout:
    rollout = new_rollout()
    return replace(rollout, state=State(phase), plan=rollout.plan.model_copy(update=plan))


@pytest.mark.parametrize(
    ("phase", "spent_s", "held"),
    [
        (Phase.PENDING, 0.0, {1}),
        (Phase.LOADING, 0.0, {1, 2}),
        (Phase.CANARY, 0.0, {1, 2}),
        (Phase.PROMOTING, 1.0, {1, 2}),
        (Phase.PROMOTING, 60.0, {2}),
        (Phase.PROMOTED, 0.0, {2}),
        (Phase.ROLLING_BACK, 1.0, {1, 2}),
        (Phase.ROLLING_BACK, 60.0, {1}),
        (Phase.ROLLED_BACK, 0.0, {1}),
    ],
)
def test_the_order_of_versions_beside_each_other(phase: Phase, spent_s: float, held: set[int]) -> None:
    seen = replicas({1, 2}, {1, 2})
    assert holdings(in_phase(phase), seen, spent_s) == dict.fromkeys(
        ("replica-0", "replica-1"), frozenset(held)
    )


def test_no_replica_lets_a_version_go_before_it_has_the_other() -> None:
    seen = replicas({1, 2}, {1})
    assert holdings(in_phase(Phase.PROMOTING), seen, 60.0) == {
        "replica-0": frozenset({2}),
        "replica-1": frozenset({1, 2}),
    }


def test_a_rollback_loads_nothing() -> None:
    seen = replicas({1, 2}, {1})
    assert holdings(in_phase(Phase.ROLLING_BACK), seen, 0.0) == {
        "replica-0": frozenset({1, 2}),
        "replica-1": frozenset({1}),
    }


def test_memory_tight_fleets_swap_one_replica_at_a_time() -> None:
    def held(phase: Phase, *having: set[int]) -> list[set[int]]:
        found = holdings(in_phase(phase, max_unavailable=1), replicas(*having), 60.0)
        return [set(found[f"replica-{index}"]) for index in range(len(having))]

    assert held(Phase.CANARY, {1}, {1}, {1}) == [{2}, {1}, {1}]
    assert held(Phase.PROMOTING, {2}, {1}, {1}) == [{2}, {2}, {1}]
    assert held(Phase.PROMOTING, {2}, set(), {1}) == [{2}, {2}, {1}], "one is under way"
    assert held(Phase.PROMOTING, {2}, {2}, {1}) == [{2}, {2}, {2}]
    assert held(Phase.ROLLING_BACK, {2}, {1}, {1}) == [{1}, {1}, {1}]
    alone = replicas_verdict(in_phase(Phase.PENDING, max_unavailable=1), replicas({1}))
    assert alone is not None
    assert alone.outcome is Outcome.FAIL


def test_the_replica_that_tries_a_candidate_keeps_it_whichever_others_come() -> None:
    canary = in_phase(Phase.CANARY, max_unavailable=1)
    new, having, left = replicas({1}, {2}, {1})
    left = replace(left, states={**left.states, 2: VersionStatus("END")})
    for fleet in ([new, having], [new, having, left]):
        held = holdings(canary, fleet, 60.0)
        assert [address for address, versions in held.items() if versions == {2}] == [having.address]
        verdict = replicas_verdict(canary, fleet)
        assert verdict is None, "one that had it for a moment has not failed"
    gone = replicas_verdict(canary, [new, left])
    assert gone is not None
    assert (gone.outcome, gone.reason.code) == (Outcome.FAIL, "replicas.cannot-load")


@pytest.mark.parametrize(("most", "warned"), [(None, False), (1, True), (2, False)])
def test_a_weight_that_the_few_which_try_a_candidate_could_hardly_bear_is_told(
    most: int | None, warned: bool
) -> None:
    plan = {"max_unavailable": most, "canary": (Step(weight=0.05), Step(weight=0.4))}
    verdict = replicas_verdict(in_phase(Phase.PENDING, **plan), replicas({1}, {1}, {1}, {1}, {1}))
    assert verdict is not None
    assert verdict.outcome is Outcome.PASSED
    text = "a weight of 40% is more than an even share of the 1 of 5 replicas that try the candidate"
    assert (text in verdict.reason.text) == warned


def test_replicas_that_cannot_load_fail_the_rollout_when_too_few_are_left() -> None:
    loading = replace(in_phase(Phase.LOADING), clock_s=10.0)
    some = [*replicas({1, 2}), *replicas({1}, failed=frozenset({2}))]
    enough, too_few = replicas_verdict(loading, some), replicas_verdict(loading, some[1:])
    assert enough is not None
    assert enough.outcome is Outcome.PASSED
    assert too_few is not None
    assert (too_few.outcome, too_few.reason.code) == (Outcome.FAIL, "replicas.cannot-load")
    assert "damaged" in too_few.reason.text


@pytest.mark.parametrize("before", [Phase.PENDING, Phase.LOADING])
@pytest.mark.parametrize("error", ["", "out of memory"])
def test_a_second_try_does_not_fail_by_what_is_left_of_the_first(before: Phase, error: str) -> None:
    left = [Seen("replica", True, {1: VersionStatus("AVAILABLE"), 2: VersionStatus("END", error)})]
    soon = replace(in_phase(before), clock_s=1.0)
    paused = replace(soon, state=command(soon.state, "pause", 1.0, by="a test"))
    for each in (soon, paused):
        verdict = replicas_verdict(each, left)
        assert verdict is not None
        assert verdict.outcome is not Outcome.FAIL
    later = replicas_verdict(replace(soon, clock_s=10.0), left)
    assert later is not None
    assert (later.outcome is Outcome.FAIL) == (before is Phase.LOADING and bool(error))


@pytest.mark.parametrize("state", ["AVAILABLE", "END"])
def test_what_a_replica_that_cannot_be_reached_last_said_counts_for_nothing(state: str) -> None:
    there = {1: VersionStatus("AVAILABLE"), 2: VersionStatus("AVAILABLE")}
    gone = replace(replicas({1, 2})[0], reachable=False, states=there | {2: VersionStatus(state, "")})
    alone = replicas_verdict(in_phase(Phase.CANARY), [gone])
    assert alone is not None
    assert (alone.outcome, alone.reason.code) == (Outcome.INCONCLUSIVE, "replicas.gone")
    beside = replicas_verdict(in_phase(Phase.CANARY), [gone, *replicas({1, 2})])
    assert beside is None


def test_a_rollout_to_the_version_that_serves_ends_at_once() -> None:
    seen = replicas({1})
    rollout = replace(in_phase(Phase.PENDING), candidate=1)
    verdict = replicas_verdict(rollout, seen)
    assert verdict is not None
    assert (verdict.outcome, verdict.reason.code) == (Outcome.FAIL, "replicas.serves-already")
    back = replace(rollout, state=advance(rollout.plan, rollout.state, verdict, 1.0))
    settled = replicas_verdict(back, seen)
    assert settled is not None
    assert settled.outcome is Outcome.PASSED


def test_counts_of_gateways_that_come_go_and_start_again() -> None:
    before = {"a": {"x": 5.0, "y": 1.0}, "gone": {"x": 9.0}}
    now = {"a": {"x": 7.0, "y": 1.0}, "new": {"x": 900.0}}
    assert grown(now, before) == {"x": 2.0}, "nobody knows since when a new one counts"
    later = now | {"new": {"x": 901.0, "z": 1.0}}
    assert grown(later, remembered(before, now)) == {"x": 1.0, "z": 1.0}
    assert grown({"a": {"x": 2.0}}, before) == {"x": 2.0}, "started again: all it has counted is new"


def test_a_gateway_that_cannot_be_seen_for_once_comes_back_as_itself() -> None:
    first = {"a": {"x": 100.0}, "b": {"x": 50.0}}
    without_b = {"a": {"x": 101.0}}
    back = {"a": {"x": 102.0}, "b": {"x": 53.0}}
    assert grown(without_b, first) == {"x": 1.0}
    before = remembered(first, without_b)
    assert grown(back, before) == {"x": 4.0}, "of b only what it has counted since it was last seen"


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"digits": []}', '{"digits": {"calls/1": null}}'])
def test_a_damaged_file_of_counts_is_passed_over(tmp_path: Path, content: str) -> None:
    counts = FolderCounts(tmp_path, "living")
    counts.publish({"digits": {"calls/1": 3.0}})
    (tmp_path / "counts" / "damaged.json").write_text(content)
    assert counts.collect("digits") == {"living": {"calls/1": 3.0}}


def test_counts_in_a_folder_outlive_a_clock_that_is_set(tmp_path: Path) -> None:
    now = time.time()
    living, dead = (FolderCounts(tmp_path, name, lambda: now) for name in ("living", "dead"))
    for each in (living, dead):
        each.publish({"digits": {"calls/1": 3.0}})
    for step in (7200.0, -7200.0, 3e8, -3e8):
        now = time.time() + step
        living.publish({"digits": {"calls/1": 3.0}})
        living.collect("digits")  # what seems to be an hour old, or of the future, is removed …
        living.publish({"digits": {"calls/1": 3.0}})
        now = time.time()
        assert living.collect("digits") == {"living": {"calls/1": 3.0}}, "… and written anew by who lives"


async def test_steering_counts_calls_once_however_often_they_are_tried() -> None:
    steering = Steering()
    steering.set_split("digits", Split(1, 2, 0.5, salt="x"), 0.1)

    async def answer(api: object, timeout_s: float) -> str:
        return "answer"

    async def fail(api: object, timeout_s: float) -> str:
        raise errors.Internal("the model failed")

    async def away(api: object, timeout_s: float) -> str:
        raise errors.Unavailable("away")

    async def twice(call: Any) -> str:
        for _ in range(2):
            try:
                return str(await call(None, 1.0))
            except errors.SluiceError as error:
                last = error
        raise last

    assert await steering.call("digits", 1, answer, twice) == "answer"
    with pytest.raises(errors.Internal):
        await steering.call("digits", 2, fail, twice)
    with pytest.raises(errors.Unavailable):
        await steering.call("digits", 2, away, twice)
    steering.answered("digits", Route(2, "candidate", None), 0.2, late=False)
    steering.answered("digits", None, 9.0, late=False)
    assert steering.counts("digits") == {
        "calls/1": 1.0,
        "calls/2": 1.0,
        "failed/2": 1.0,
        "requests/2": 1.0,
        "slow/2": 1.0,
    }
    registry = CollectorRegistry()
    for label in ("cat", "axolotl", "okapi"):
        steering._add(steering._models["digits"], f"compared/2/{label}")
    registry.register(SteeringCollector(steering, lambda _m, _v, label: label if label == "cat" else "other"))
    text = generate_latest(registry).decode()
    assert 'sluice_rollout_events_total{model="digits",name="failed/2"} 1.0' in text
    assert 'sluice_rollout_events_total{model="digits",name="compared/2/cat"} 1.0' in text
    assert 'sluice_rollout_events_total{model="digits",name="compared/2/other"} 2.0' in text
    assert "axolotl" not in text


def test_a_gateway_whose_counts_are_grouped_otherwise_is_not_one_that_started_again() -> None:
    steering, metrics = Steering(), new_metrics()
    steering.set_split("digits", Split(1, 3, 0.5, salt="x"), None)
    metrics.know("digits", 2, ("cat", "dog"), {})
    metrics.present([("digits", "2")], 0.0)
    collector = SteeringCollector(steering, metrics.class_group)

    def collected() -> Counts:
        (family,) = collector.collect()
        return {sample.labels["name"]: sample.value for sample in family.samples}

    for name in ("compared/2/cat", "calls/1"):
        steering._add(steering._models["digits"], name)
    before = {"gateway": collected()}
    assert before["gateway"] == {"compared/2/cat": 1.0, "calls/1": 1.0}
    metrics.present([], 1e6)
    steering._add(steering._models["digits"], "calls/1")
    assert grown({"gateway": collected()}, before) == {"calls/1": 1.0}, "version 2 left long ago"


@pytest.mark.parametrize(
    ("after_s", "limit_s", "error", "slow"),
    [
        (0.09, 0.1, asyncio.CancelledError, None),
        (0.11, 0.1, asyncio.CancelledError, 1.0),
        (5.0, None, asyncio.CancelledError, None),
        (9.0, None, asyncio.CancelledError, 1.0),
        (5.0, 0.1, errors.Internal, None),
    ],
)
def test_a_caller_who_leaves_tells_only_of_what_was_slow_by_then(
    after_s: float, limit_s: float | None, error: type[BaseException], slow: float | None
) -> None:
    steering = Steering()
    steering.set_split("digits", Split(1, 2, 0.5, salt="x"), limit_s)
    context = RequestContext("a request", "http", deadline=8.0, route=Route(2, "candidate", None))
    now = 0.0

    def leave() -> None:
        nonlocal now
        with measured(steering, ModelVersion("digits", 2, {}, None, ()), context, lambda: now):
            now = after_s
            raise error("it ends here")

    with pytest.raises(error):
        leave()
    assert steering.counts("digits") == ({} if slow is None else {"requests/2": slow, "slow/2": slow})


@contextmanager
def prometheus(answer: Any, status: int = 200) -> Iterator[tuple[str, list[str]]]:
    """A server that answers queries so; its address, and the queries that came."""
    queries: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            queries.append(parse_qs(urlsplit(self.path).query)["query"][0])
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", queries
    finally:
        server.shutdown()
        server.server_close()


def test_counts_come_from_prometheus_by_gateway() -> None:
    series = [
        {"metric": {"instance": "a:8080", "name": "calls/2"}, "value": [1.0, "7"]},
        {"metric": {"instance": "b:8080", "worker": "0", "name": "calls/2"}, "value": [1.0, "3"]},
        {"metric": {"instance": "b:8080", "worker": "1", "name": "calls/2"}, "value": [1.0, "4"]},
        {"metric": {"instance": "a:8080"}, "value": [1.0, "2"]},
        {"metric": {"instance": "c:8080"}, "value": [1.0, "0"]},
    ]
    with prometheus({"data": {"result": series}}) as (url, queries):
        found = PrometheusCounts(url).collect('di"gits')
    assert found == {
        "a:8080": {"calls/2": 7.0},
        "b:8080/0": {"calls/2": 3.0},
        "b:8080/1": {"calls/2": 4.0},
        "c:8080": {},
    }
    (query,) = queries
    assert query == (
        'sum by (instance, worker, name) (sluice_rollout_events_total{model="di\\"gits"})'
        " or sum by (instance, worker) (sluice_requests_in_flight{})"
    )


def test_a_prometheus_that_scrapes_no_gateway_is_unavailable_and_one_without_requests_is_not() -> None:
    told = r'no metrics of any gateway .* with namespace="serving"'
    with prometheus({"data": {"result": []}}) as (url, queries), pytest.raises(Unavailable, match=told):
        PrometheusCounts(url, 'namespace="serving"').collect("digits")
    assert queries[0].endswith(' (sluice_requests_in_flight{namespace="serving"})')
    idle = [{"metric": {"instance": "a:8080"}, "value": [1.0, "0"]}]
    with prometheus({"data": {"result": idle}}) as (url, _):
        assert PrometheusCounts(url).collect("digits") == {"a:8080": {}}


def test_every_gateway_exports_from_its_start_what_it_is_known_by() -> None:
    assert f"\n{PRESENCE} 0.0\n" in generate_latest(new_metrics().registry).decode()


@pytest.mark.parametrize(("answer", "status"), [({}, 200), ({"data": 3}, 200), ({}, 503)])
def test_a_prometheus_that_does_not_answer_is_unavailable(answer: Any, status: int) -> None:
    with prometheus(answer, status) as (url, _), pytest.raises(Unavailable, match="cannot be asked"):
        PrometheusCounts(url).collect("digits")


def test_a_password_for_prometheus_is_in_no_error() -> None:
    with prometheus({}, 401) as (url, _), pytest.raises(Unavailable) as refused:
        PrometheusCounts(url.replace("//", "//me:secret@")).collect("digits")
    assert refused.value.message == "Prometheus cannot be asked: it answered 401"


class ToldWhere(VersionedReplica):
    """Notes where it is told to find a model."""

    base_path = ""

    async def reload(self, request: Any) -> Any:
        self.base_path = request.config.model_config_list.config[0].base_path
        return await super().reload(request)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("folder", ["gs://models", "/srv/models"])
async def test_replicas_are_told_the_folder_or_the_bucket_that_the_setting_names(
    folder: str, workers: int, tmp_path: Path
) -> None:
    replica = ToldWhere()
    async with running(replica):
        arguments = ["gateway", f"--replica={replica.address}", "--model=digits", f"--workers={workers}"]
        environment = {"SLUICE_REPLICA_MODELS_DIR": folder, "SLUICE_ROLLOUT_STORE": str(tmp_path / "store")}
        async with started(arguments, environment):
            await until(lambda: bool(replica.base_path))
    assert replica.base_path == f"{folder}/digits"

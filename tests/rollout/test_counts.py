"""Counts of the calls to each version: summed over gateways, kept in a folder, each request counted once."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from serving import errors
from serving.arms import measured
from serving.main import new_metrics
from serving.model_version import ModelVersion
from serving.prediction import RequestContext
from serving.rollout.counts import Counts, grown, remembered
from serving.rollout.leader import FolderCounts
from serving.rollout.prometheus import SteeringCollector, _by_run
from serving.rollout.steering import Steering
from serving.routing import Route, Split


def test_counts_of_gateways_that_come_and_go() -> None:
    before = {"a": {"x": 5.0, "y": 1.0}, "gone": {"x": 9.0}}
    now = {"a": {"x": 7.0, "y": 1.0}, "new": {"x": 900.0}}
    assert grown(now, before) == {"x": 2.0}, "nobody knows since when a new one counts"
    later = now | {"new": {"x": 901.0, "z": 1.0}}
    assert grown(later, remembered(before, now)) == {"x": 1.0, "z": 1.0}


def test_what_was_read_earlier_says_nothing_new() -> None:
    """As from two Prometheuses behind one name, each of which scrapes the gateway at its own times."""
    before: dict[str, Counts] = {"a": {"x": 100.0, "y": 3.0}}
    total: Counts = {}
    for x, y in ((90.0, 3.0), (110.0, 4.0), (100.0, 3.0), (112.0, 4.0), (110.0, 4.0), (115.0, 5.0)):
        now = {"a": {"x": x, "y": y}}
        for name, number in grown(now, before).items():
            total[name] = total.get(name, 0.0) + number
        before = remembered(before, now)
    assert total == {"x": 15.0, "y": 2.0}


def test_a_process_that_took_the_place_of_another_is_not_that_one() -> None:
    def process(calls: int) -> SteeringCollector:
        steering = Steering()
        steering.set_split("digits", Split(1, 2, 0.5, salt="x"), None)
        for _ in range(calls):
            steering._add(steering._models["digits"], "calls/2")
        return SteeringCollector(steering, lambda _m, _v, label: label)

    def scraped(collector: SteeringCollector) -> dict[str, Counts]:
        (family,) = collector.collect()
        counts = {sample.labels["name"]: sample.value for sample in family.samples}
        return dict((_by_run("a:8080", counts),))

    first, second, third = process(7), process(0), process(2)
    before = scraped(first)
    assert list(before.values()) == [{"calls/2": 7.0}]
    assert scraped(first) == before
    before = remembered(before, scraped(second))
    assert len(before) == 2
    steering = second._steering
    for _ in range(9):
        steering._add(steering._models["digits"], "calls/2")
    assert grown(scraped(second), before) == {"calls/2": 9.0}
    assert grown(scraped(third), before) == {}, "nobody knows since when a new one counts"


def test_a_gateway_that_forgets_a_version_goes_on_with_the_others() -> None:
    before = {"a": {"calls/1": 9.0, "compared/1/cat": 4.0, "calls/2": 5.0, "failed/2": 1.0}}
    assert grown({"a": {"calls/2": 7.0, "failed/2": 1.0, "calls/3": 1.0}}, before) == {
        "calls/2": 2.0,
        "calls/3": 1.0,
    }


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


def test_what_was_counted_of_versions_that_no_rollout_is_about_any_more_is_forgotten() -> None:
    """Otherwise two counts per class of every candidate ever would be sent to other gateways each second."""
    steering = Steering()
    registry = CollectorRegistry()
    registry.register(SteeringCollector(steering, lambda _model, _version, label: label))

    def counted() -> set[str]:
        found = set(steering.counts("digits"))
        (family,) = registry.collect()
        names = {sample.labels["name"] for sample in family.samples}
        assert {name for name in names if not name.startswith("run/")} == found
        return found

    def count_all() -> None:
        for name in ("routed/stable/0.5", "calls/1", "compared/2/cat", "agreed/3/cat", "calls/4"):
            steering._add(steering._models["digits"], name)

    steering.set_split("digits", Split(1, 2, 0.5, salt="x"), None)
    count_all()
    every = counted()
    steering.set_split("digits", Split(1, 2, 0.9, salt="x"), None)
    assert counted() == every, "a step of the same rollout"
    steering.set_split("digits", Split(2, None), None)
    assert counted() == {"routed/stable/0.5", "calls/1", "compared/2/cat"}, "late feedback may be about these"
    steering.set_split("digits", Split(2, 3, 0.5, salt="y"), None)
    assert counted() == {"routed/stable/0.5", "compared/2/cat"}
    count_all()
    assert counted() == every, "it is counted anew"


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
        return _by_run("", {sample.labels["name"]: sample.value for sample in family.samples})[1]

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

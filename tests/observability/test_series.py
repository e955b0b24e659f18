"""Series are remembered by their label values, and forgotten with the version that they are about."""

from __future__ import annotations

import re

from prometheus_client import CollectorRegistry

from serving.journal import Journal
from serving.telemetry.drift import LEAST_PREDICTIONS
from serving.telemetry.logs import AccessLog
from serving.telemetry.metrics import GRACE_S, Metrics
from serving.telemetry.scrape import exposition
from serving.telemetry.series import Counter, Histogram


def test_a_series_is_found_again_and_by_name_it_is_the_same() -> None:
    counter = Counter("images", "Images.", ("model", "version"), registry=CollectorRegistry())
    assert counter.labels("digits", "1") is counter.labels("digits", "1")
    assert counter.labels(model="digits", version="1") is counter.labels("digits", "1")
    assert counter.labels("digits", "2") is not counter.labels("digits", "1")


def test_a_series_that_was_ended_begins_anew() -> None:
    registry = CollectorRegistry()
    histogram = Histogram("latency", "Latency.", ("model", "version"), buckets=(1.0,), registry=registry)
    for version in ("1", "2"):
        histogram.labels("digits", version).observe(0.5)
    histogram.remove_by_labels({"model": "digits", "version": "1"})
    labels = {"model": "digits", "version": "1"}
    assert registry.get_sample_value("latency_count", labels) is None
    histogram.labels("digits", "1").observe(0.5)
    assert registry.get_sample_value("latency_count", labels) == 1
    assert registry.get_sample_value("latency_count", labels | {"version": "2"}) == 1


def test_the_series_of_a_version_end_a_while_after_it_left() -> None:
    metrics, card = Metrics(CollectorRegistry()), {"training": {"class_distribution": [0.5, 0.3, 0.2]}}
    for version in (1, 2):
        metrics.predicted("m", version, ("a", "b", "c"), card, [0] * LEAST_PREDICTIONS)
        metrics.requests.labels("http", "m", str(version), "", "ok").inc()
        metrics.request_seconds.labels("http", "m", str(version)).observe(0.1)
        metrics.images.labels("m", str(version)).inc()
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


def test_the_series_of_a_model_end_a_while_after_it_left() -> None:
    metrics = Metrics(CollectorRegistry())
    journal = Journal(metrics, AccessLog(0.0))
    for model in ("gone", "stays"):
        metrics.begin(model, "", "")
        journal.batch_left(model, 3, "idle")
    metrics.present([("gone", ""), ("gone", "1"), ("stays", ""), ("stays", "1")], 0.0)

    def models() -> set[str]:
        page, _ = exposition(metrics.registry, "")
        return set(re.findall(r'model="(\w+)"', page.decode()))

    metrics.present([("stays", "")], GRACE_S)
    assert models() == {"gone", "stays"}
    metrics.present([("stays", "")], GRACE_S + 1)
    assert models() == {"stays"}
    page, _ = exposition(metrics.registry, "")
    assert 'sluice_batches_total{model="stays",reason="idle"} 1.0' in page.decode()

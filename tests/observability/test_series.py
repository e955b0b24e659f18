"""Series are remembered by their label values, and forgotten with the version that they are about."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

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

"""Writes `docs/metrics.md` from the metrics themselves: `python -m serving.metrics_page`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from serving.rollout.events import Announcer
from serving.rollout.prometheus import SteeringCollector
from serving.rollout.steering import Steering
from serving.telemetry.metrics import Metrics

TARGET = Path(__file__).parents[1] / "docs" / "metrics.md"
_SUFFIX = {"counter": "_total", "info": "_info"}
_INTRODUCTION = """\
# Metrics

What a gateway exports at `/metrics`. This page is generated from the code, by
`python -m serving.metrics_page`; a test fails when it is out of date. For what to do when an alert fires, see
[runbook.md](runbook.md).

- Durations are in seconds, sizes in bytes, points in time in Unix seconds; counters end in `_total`.
- Labels are bounded. Requests for a model that does not exist are counted under the empty label; `version` is
  one that replicas have; `outcome` is `ok` or a kind from `serving/errors.py`; beyond 20 classes the ones
  rarer in training are `other`, the same ones in every gateway.
- Summing over several gateways (or pods) is right for every counter and histogram, and for the gauges of
  requests, queues and calls. The gauges of replicas, versions and rollouts say what each gateway *sees*: take
  `max by (...)`.
- `sluice_requests_total` counts every request for a model once, as it ends: summed over all its labels it is
  what clients sent, refusals and failures included. Metrics, health and the page are not counted.
- Series that alerts take a rate of start at zero as soon as a version may answer, since Prometheus sees no
  growth in the first value of a series. Five models under rollouts, with three versions of a thousand classes
  each, make some 1,800 series.
- The series of a version end a quarter of an hour after the last replica that had it: a sum over a version's
  whole life is for Prometheus to keep; a rate or an increase is not affected. So do a version's state, unless
  it failed, and the series of a model that is no longer served.
- Scraped as OpenMetrics, `sluice_requests_total` and `sluice_request_duration_seconds` carry the trace ids of
  sampled requests (`SLUICE_TRACES_ENDPOINT`) as exemplars.

| metric | type | labels | meaning |
|---|---|---|---|
"""


def families() -> list[tuple[Metric, tuple[str, ...]]]:
    """Every metric of a gateway with its labels, in the order in which they are exported."""
    registry = CollectorRegistry()
    Metrics(registry)
    Announcer(registry)
    registry.register(SteeringCollector(Steering(), lambda _model, _version, label: label))
    found = []
    for collector in list(registry._collector_to_names):
        for family in collector.collect():
            of_samples = {label: None for sample in family.samples for label in sample.labels}
            labels = getattr(collector, "_labelnames", ()) or getattr(family, "_labelnames", ())
            found.append((family, tuple(labels) or tuple(of_samples)))
    return found


def page() -> str:
    """The page, as Markdown."""
    return _INTRODUCTION + "".join(_rows())


def _rows() -> Iterator[str]:
    for family, labels in families():
        name = family.name + _SUFFIX.get(family.type, "")
        shown = ", ".join(f"`{label}`" for label in labels if label != "le")
        yield f"| `{name}` | {family.type} | {shown} | {family.documentation} |\n"


def main() -> None:
    """Write the page."""
    TARGET.write_text(page())


if __name__ == "__main__":
    main()

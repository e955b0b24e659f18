"""What Sluice measures: one object with every metric, made for a registry that the caller gives.

Label values are bounded: a model or version that does not exist is counted under the empty label, so that
nobody outside can grow the number of series, and if there are many classes the rare ones are counted as
`other`. `docs/metrics.md` is generated from this.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version as distribution_version
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, Info, disable_created_metrics
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from serving.errors import DeadlineExceeded, Internal, Overloaded, Unavailable
from serving.telemetry.drift import OTHER, PredictedClasses
from serving.telemetry.series import Counter, Histogram
from serving.telemetry.snapshot import Snapshot

# When each series began: Prometheus 2 stores it as a series of its own, which doubles the counters.
disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no types

# From a cache hit of a tiny model to the default deadline; about a factor of two between neighbours.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# Stages go down to tens of microseconds; beyond a second one in three is enough.
_STAGE_SECONDS = (0.0001, 0.0003, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)
# Counters of a version that is gone are kept for this long: for the last scrapes, and so that they go on if
# it was only out of reach. Kept for ever, the series of every version that ever served, some 85 kB each,
# would pile up.
GRACE_S = 900.0
_PROTOCOLS = ("http", "grpc")
# What counts against the availability objective, and together with "ok" its denominator; other failures are
# the callers' own.
_FAILURES = tuple(each.kind for each in (Internal, Unavailable, DeadlineExceeded, Overloaded))
_OUTCOMES = ("ok", *_FAILURES)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Every metric of a gateway.

    Args:
        registry: where they are registered; each test has its own.

    Attributes:
        snapshot: the metrics that are read at a scrape.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.build = Info("sluice_build", "What is running.", registry=registry)
        self.build.info({"version": distribution_version("sluice"), "python": platform.python_version()})
        # Before the counters: series that begin while it is read (`begin`) are to be in the same scrape.
        self.snapshot = Snapshot(registry)
        self._add_requests(registry)
        self._add_work(registry)
        self._add_replicas(registry)
        self._classes: dict[tuple[str, str], PredictedClasses] = {}
        self._present_at: dict[tuple[str, str], float] = {}

    def _add_requests(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "sluice_requests",
            "Requests that ended, by outcome: `ok` or the kind of error. The arm is empty if no rollout "
            "chose the version; model and version are empty if none was reached.",
            ("protocol", "model", "version", "arm", "outcome"),
            registry=registry,
        )
        self.request_seconds = Histogram(
            "sluice_request_duration_seconds",
            "From the arrival of a request to its answer, failures included.",
            ("protocol", "model", "version"),
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge(
            "sluice_requests_in_flight", "Requests admitted and not yet answered.", registry=registry
        )
        self.refused = Counter(
            "sluice_requests_refused",
            "Requests refused by admission, by reason.",
            ("reason",),
            registry=registry,
        )

    def _add_work(self, registry: CollectorRegistry) -> None:
        self.stage_seconds = Histogram(
            "sluice_stage_duration_seconds",
            "Time in one stage of a request's path: admission, read (of the body), decode, queue (of each "
            "image, until its batch leaves), backend (of each call to a replica).",
            ("stage",),
            buckets=_STAGE_SECONDS,
            registry=registry,
        )
        self.images = Counter(
            "sluice_images", "Images that were classified.", ("model", "version"), registry=registry
        )
        self.batch_size = Histogram(
            "sluice_batch_size",
            "Images in one call to a replica.",
            ("model",),
            buckets=_BATCH_SIZES,
            registry=registry,
        )
        self.batches = Counter(
            "sluice_batches",
            "Batches that left, by reason: `idle` (a replica was free when the image came), `freed` (a call "
            "ended), `full`.",
            ("model", "reason"),
            registry=registry,
        )
        self.stalls = Counter(
            "sluice_event_loop_stalls",
            "How often the event loop was blocked for over half a second; the log says where.",
            registry=registry,
        )
        self.stall_seconds = Counter(
            "sluice_event_loop_stall_seconds", "How long it was blocked in total.", registry=registry
        )
        self.predictions = Counter(
            "sluice_predictions",
            f"Images by a version's top class; beyond 20 classes the rarer ones are `{OTHER}`.",
            ("model", "version", "class"),
            registry=registry,
        )

    def _add_replicas(self, registry: CollectorRegistry) -> None:
        self.replica_up = Gauge(
            "sluice_replica_up",
            "Whether a replica answered when last asked (1) or not (0).",
            ("replica",),
            registry=registry,
        )
        self.replica_calls_limit = Gauge(
            "sluice_replica_calls_limit",
            "How many calls a replica is given at once, as learned from its refusals; others wait.",
            ("replica",),
            registry=registry,
        )
        self.version_replicas = Gauge(
            "sluice_model_version_replicas",
            "On how many replicas a version is AVAILABLE.",
            ("model", "version"),
            registry=registry,
        )
        self.model_server_restarts = Counter(
            "sluice_model_server_restarts",
            "How often the model server that runs as a child process had to be restarted.",
            registry=registry,
        )

    def begin(self, model: str, version: str, arm: str) -> None:
        """Start the series that alerts rely on at zero, if requests may soon be counted with these labels.

        Prometheus' `rate` and `increase` do not see the value that a series begins with: the first failures,
        if all of them fell between two scrapes, would go unnoticed.

        Args:
            model: the model; empty: none was reached.
            version: its version; empty: none was reached.
            arm: the arm of the model's rollout; empty: none chose.
        """
        for protocol in _PROTOCOLS:
            for outcome in _OUTCOMES if version else _FAILURES:
                self.requests.labels(protocol, model, version, arm, outcome)
            if version:
                self.request_seconds.labels(protocol, model, version)

    def present(self, versions: Iterable[tuple[str, str]], now: float) -> None:
        """Note which models are served, and which versions replicas have; the series of those that left
        `GRACE_S` ago end.

        Args:
            versions: model and version of each; of each model also one with an empty version.
            now: the monotonic clock, in seconds.
        """
        self._present_at.update(dict.fromkeys(versions, now))
        for key, at in list(self._present_at.items()):
            if now - at > GRACE_S:
                del self._present_at[key]
                self._forget(*key)

    def _forget(self, model: str, version: str) -> None:
        self._classes.pop((model, version), None)
        for metric in (self.requests, self.request_seconds, self.images, self.predictions):
            metric.remove_by_labels({"model": model, "version": version})
        if not version:
            for metric in (self.batch_size, self.batches):
                metric.remove_by_labels({"model": model})

    def has_left(self, model: str, version: str) -> bool:
        """Whether a version's series have ended, or never began."""
        return (model, version) not in self._present_at

    def stalled(self, duration_s: float) -> None:
        """The event loop was blocked."""
        self.stalls.inc()
        self.stall_seconds.inc(duration_s)

    def predicted(
        self, model: str, version: int, labels: Sequence[str], card: Mapping[str, Any], indices: Iterable[int]
    ) -> None:
        """Count what a version predicted.

        Args:
            model: the model.
            version: its version.
            labels: its classes' labels, [K].
            card: its model card; predictions are compared with its training data's class distribution.
            indices: the top class of each image.
        """
        key = model, str(version)
        classes = self.know(model, version, labels, card)
        named = list(indices)
        classes.add(named)
        for index in named:
            self.predictions.labels(*key, classes.group_of[index]).inc()

    def know(
        self, model: str, version: int, labels: Sequence[str], card: Mapping[str, Any]
    ) -> PredictedClasses:
        """The classes of a version, and how they are counted; see `predicted`."""
        key = model, str(version)
        classes = self._classes.get(key)
        if classes is None or classes.labels is not labels:
            classes = self._classes[key] = PredictedClasses(labels, _shares(card))
            for group in dict.fromkeys(classes.group_of):
                self.predictions.labels(*key, group)  # begins at zero, as in `begin`
        return classes

    def drift(self) -> dict[tuple[str, str], float]:
        """The stability index of each model and version with enough predictions."""
        found = {key: classes.index() for key, classes in list(self._classes.items())}
        return {key: index for key, index in found.items() if index is not None}

    def class_group(self, model: str, version: str, label: str) -> str:
        """Under which name a class of a version is counted."""
        classes = self._classes.get((model, version))
        return OTHER if classes is None else classes.group(label)


def _shares(card: Mapping[str, Any]) -> Sequence[float] | None:
    """The class distribution of the training data, if the card has one."""
    training = card.get("training")
    shares = training.get("class_distribution") if isinstance(training, Mapping) else None
    if not isinstance(shares, list) or not all(isinstance(each, int | float) for each in shares):
        return None
    return shares

"""Metrics that are read from the gateway's parts when somebody scrapes, instead of being kept up to date.

So what a part knows anyway (how long its queue is, which replicas there are) is never stale, and costs
nothing between scrapes. The families are declared here, once; readers fill them in.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

Family = CounterMetricFamily | GaugeMetricFamily

_GAUGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "sluice_requests_in_flight_limit": ("How many requests may be in flight at once.", ()),
    "sluice_requests_in_progress": (
        "Requests for a model whose body has been read and that are not yet answered.",
        ("model",),
    ),
    "sluice_requests_in_progress_limit": (
        "How many of them may be in progress at once: it falls while they take longer than the target.",
        ("model",),
    ),
    "sluice_request_body_bytes": ("Bytes of request bodies that are held.", ()),
    "sluice_request_body_limit_bytes": ("How many bytes of request bodies may be held at once.", ()),
    "sluice_queue_depth": ("Images waiting for a replica.", ("model",)),
    "sluice_replica_calls_in_flight": ("Calls to a replica that are in flight.", ("replica",)),
    "sluice_replica_latency_seconds": (
        "Moving average of the duration of a replica's last twenty or so successful calls.",
        ("replica",),
    ),
    "sluice_replica_breaker_open": (
        "Whether a replica gets no calls, for one version at least, since they failed in a row or often (1).",
        ("replica",),
    ),
    "sluice_model_version_state": (
        "1 for a version's most advanced state on any replica, by TensorFlow Serving's names.",
        ("model", "version", "state"),
    ),
    "sluice_prediction_drift": (
        "Population stability index of a version's latest predictions against its training data.",
        ("model", "version"),
    ),
    "sluice_rollout_info": (
        "1 for the phase of a model's newest rollout, with its two versions.",
        ("model", "phase", "stable", "candidate"),
    ),
    "sluice_rollout_step": ("The canary step that a rollout is in, from 0.", ("model",)),
    "sluice_rollout_traffic_share": ("Share of the requests that an arm answers.", ("model", "arm")),
    "sluice_rollout_moved_timestamp_seconds": ("Unix time of a rollout's last move.", ("model",)),
    "sluice_rollout_seen_timestamp_seconds": ("Unix time at which a rollout was last looked at.", ("model",)),
    "sluice_rollout_evidence": (
        "Natural logarithm of the e-value for the candidate being worse, or being good enough.",
        ("model", "criterion", "verdict"),
    ),
    "sluice_rollout_evidence_limit": (
        "Natural logarithm of the e-value at which a rollout decides.",
        ("model", "criterion", "verdict"),
    ),
    "sluice_rollout_observed": (
        "What a rollout has counted so far: requests of each arm under a criterion, and how many were bad.",
        ("model", "criterion", "arm", "kind"),
    ),
    "sluice_tls_certificate_expiry_timestamp_seconds": ("Unix time at which the certificate expires.", ()),
}  # fmt: skip
_COUNTERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "sluice_log_lines_lost": ("Lines of the log that could not be written, as on a full disk.", ()),
    "sluice_feedback_store_failures": ("How often the store of feedback could not be read or written.", ()),
    "sluice_replica_calls_retried": ("Calls that were retried after one failed.", ()),
    "sluice_replica_calls_hedged": ("Second calls that were made while a first one was late.", ()),
    "sluice_version_calls": ("Calls to replicas for a version under a rollout.", ("model", "version")),
    "sluice_version_calls_failed": ("Of these, calls that the version failed.", ("model", "version")),
    "sluice_version_answers": ("Routed requests that a version answered, late or not.", ("model", "version")),
    "sluice_version_answers_slow": ("Of these, answers over the latency limit.", ("model", "version")),
    "sluice_feedback": ("Answers of a version that got feedback.", ("model", "version")),
    "sluice_feedback_wrong": ("Of these, answers whose label was wrong.", ("model", "version")),
    "sluice_shadow_copies": ("Copies of requests that a candidate answered.", ("model", "version")),
    "sluice_shadow_failures": ("Copies that only one of the versions failed.", ("model", "version", "arm")),
    "sluice_shadow_compared": (
        "Images that both versions classified, by the stable version's class.",
        ("model", "version", "class"),
    ),
    "sluice_shadow_agreed": ("Of these, images on which both agreed.", ("model", "version", "class")),
}  # fmt: skip


class Readings:
    """The families of one scrape, to be filled in."""

    def __init__(self) -> None:
        self.families: dict[str, Family] = {}
        for name, (text, labels) in _GAUGES.items():
            self.families[name] = GaugeMetricFamily(name, text, labels=labels)
        for name, (text, labels) in _COUNTERS.items():
            self.families[name] = CounterMetricFamily(name, text, labels=labels)

    def add(self, name: str, value: float, *labels: str) -> None:
        """One sample of a family; `labels` in the order in which the family declares them."""
        self.families[name].add_metric(labels, value)


Reader = Callable[[Readings], None]


class Snapshot(Collector):
    """The collector of these families.

    Args:
        registry: where it is registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._readers: list[Reader] = []
        self._lock = threading.Lock()
        registry.register(self)

    def read_by(self, reader: Reader) -> None:
        """Have `reader` fill families in, at every scrape from now on."""
        with self._lock:
            self._readers.append(reader)

    def collect(self) -> Iterable[Family]:
        """Every family, with what the readers find now."""
        readings = Readings()
        with self._lock:
            readers = list(self._readers)
        for reader in readers:
            reader(readings)
        return readings.families.values()

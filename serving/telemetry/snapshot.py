"""Metrics that are read from the gateway's parts when somebody scrapes, instead of being kept up to date.

What a part knows anyway (how long its queue is, which replicas there are) is so never stale, and costs
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
    "sluice_requests_in_flight_limit": ("Requests that are admitted at once at most.", ()),
    "sluice_requests_in_progress": (
        "Requests for a model whose body was read and which are not answered.",
        ("model",),
    ),
    "sluice_requests_in_progress_limit": (
        "How many of them are taken at once: it falls while they take longer than the target.",
        ("model",),
    ),
    "sluice_request_body_bytes": ("Bytes of requests' bodies that are held.", ()),
    "sluice_request_body_limit_bytes": ("Bytes of requests' bodies that are held at most.", ()),
    "sluice_queue_depth": ("Images that wait for a replica.", ("model",)),
    "sluice_replica_calls_in_flight": ("Calls to a replica that have not ended.", ("replica",)),
    "sluice_replica_latency_seconds": (
        "Moving average of the duration of a replica's last twenty or so successful calls.",
        ("replica",),
    ),
    "sluice_replica_breaker_open": (
        "Whether a replica is left alone, for a version at least, as its calls fail, in a row or often (1).",
        ("replica",),
    ),
    "sluice_model_version_state": (
        "1 for the state of a version that is furthest on any replica, as TensorFlow Serving names states.",
        ("model", "version", "state"),
    ),
    "sluice_prediction_drift": (
        "Population stability index of a version's latest predictions against its training data.",
        ("model", "version"),
    ),
    "sluice_rollout_info": (
        "1 for the phase in which a model's newest rollout is, and its two versions.",
        ("model", "phase", "stable", "candidate"),
    ),
    "sluice_rollout_step": ("The canary step that a rollout is in, from 0.", ("model",)),
    "sluice_rollout_traffic_share": ("Share of the requests that an arm answers.", ("model", "arm")),
    "sluice_rollout_moved_timestamp_seconds": ("Unix time of a rollout's last move.", ("model",)),
    "sluice_rollout_seen_timestamp_seconds": ("Unix time at which a rollout was last looked at.", ("model",)),
    "sluice_rollout_evidence": (
        "Natural logarithm of the e-value that the candidate is worse, or that it is good enough.",
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
    "sluice_tls_certificate_expiry_timestamp_seconds": ("Unix time at which the certificate ends.", ()),
}  # fmt: skip
_COUNTERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "sluice_log_lines_lost": ("Lines of the log that could not be written, as on a full disk.", ()),
    "sluice_feedback_store_failures": ("How often what is known of feedback could not be read or kept.", ()),
    "sluice_replica_calls_retried": ("Calls that were made once more after one failed.", ()),
    "sluice_replica_calls_hedged": ("Calls that were made beside one that was late.", ()),
    "sluice_version_calls": ("Calls to replicas for a version under a rollout.", ("model", "version")),
    "sluice_version_calls_failed": ("Of these, calls that the version failed.", ("model", "version")),
    "sluice_version_answers": ("Routed requests that a version answered, late or not.", ("model", "version")),
    "sluice_version_answers_slow": ("Of these, those over its latency limit.", ("model", "version")),
    "sluice_feedback": ("Answers of a version about which feedback came.", ("model", "version")),
    "sluice_feedback_wrong": ("Of these, answers whose label was wrong.", ("model", "version")),
    "sluice_shadow_copies": ("Copies of requests that a candidate answered.", ("model", "version")),
    "sluice_shadow_failures": ("Copies that only one of the versions failed.", ("model", "version", "arm")),
    "sluice_shadow_compared": (
        "Images that both versions named, by the class that the stable version named.",
        ("model", "version", "class"),
    ),
    "sluice_shadow_agreed": ("Of these, images that both named alike.", ("model", "version", "class")),
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

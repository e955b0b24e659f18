"""What Sluice measures: one object with every metric, made for a registry that the caller gives.

Label values are bounded: a model or version that a caller merely *names* is counted under the empty
label, so that nobody can grow the number of series from outside.
"""

from __future__ import annotations

import platform
from importlib.metadata import version as distribution_version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

# From a cache hit of a tiny model to the default deadline; about a factor of two between neighbours.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Every metric of a gateway.

    Args:
        registry: where they are registered; each test has its own.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.build = Info("sluice_build", "What is running.", registry=registry)
        self.build.info({"version": distribution_version("sluice"), "python": platform.python_version()})
        self.requests = Counter(
            "sluice_requests",
            "Requests that ended, by outcome: `ok` or the kind of error.",
            ("protocol", "model", "version", "outcome"),
            registry=registry,
        )
        self.request_seconds = Histogram(
            "sluice_request_duration_seconds",
            "From the arrival of a request to its answer, failures included.",
            ("protocol", "model", "version"),
            buckets=_SECONDS,
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "sluice_stage_duration_seconds",
            "Time in one stage of a request's path: decode, queue (waiting for a batch to leave), backend.",
            ("stage",),
            buckets=_SECONDS,
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
        self.in_flight = Gauge(
            "sluice_requests_in_flight", "Requests that are admitted and not answered.", registry=registry
        )
        self.refused = Counter(
            "sluice_requests_refused",
            "Requests refused by admission, by reason.",
            ("reason",),
            registry=registry,
        )
        self.replica_up = Gauge(
            "sluice_replica_up",
            "Whether a replica answered when last asked (1) or not (0).",
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
            "How often the model server that runs as a child had to be started again.",
            registry=registry,
        )

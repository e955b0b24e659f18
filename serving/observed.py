"""Reads the gateway's parts into metrics, when somebody scrapes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from serving.backends.pool import Pool
from serving.certificates import Certificates
from serving.gateway import Gateway
from serving.telemetry import logs
from serving.telemetry.snapshot import Readings

if TYPE_CHECKING:  # it brings numerics that a gateway without rollouts does not need
    from serving.rollout.record import Rollout

STATES = ("START", "LOADING", "AVAILABLE", "UNLOADING", "END")

# Steering's counts: the kind of a key -> the counter.
_COUNTS = {
    "calls": "sluice_version_calls",
    "failed": "sluice_version_calls_failed",
    "requests": "sluice_version_answers",
    "slow": "sluice_version_answers_slow",
    "labelled": "sluice_feedback",
    "wrong": "sluice_feedback_wrong",
    "copies": "sluice_shadow_copies",
}
_OF_WHICH = {"calls": "failed", "requests": "slow", "labelled": "wrong", "compared": "agreed"}
_BY_CLASS = {"compared": "sluice_shadow_compared", "agreed": "sluice_shadow_agreed"}
_FAILED_ALONE = {"candidate-failed": "candidate", "stable-failed": "stable"}


def watch(gateway: Gateway, certificates: Certificates | None, rollouts: Rollouts) -> None:
    """Have every scrape of the gateway's metrics read it, and its certificate if it has one.

    Args:
        gateway: the gateway.
        certificates: its certificate; None without TLS.
        rollouts: its rollouts, which something else keeps reading.
    """
    snapshot = gateway.metrics.snapshot
    snapshot.read_by(lambda _readings: _begin_series(gateway))
    snapshot.read_by(lambda readings: _read_room(readings, gateway))
    snapshot.read_by(lambda readings: _read_replicas(readings, gateway.pool, time.monotonic()))
    snapshot.read_by(lambda readings: _read_versions(readings, gateway))
    snapshot.read_by(lambda readings: _read_counts(readings, gateway))
    # A scrape is answered on the event loop, which must not wait for a disk or an API server. While the store
    # is away, how long ago a rollout was last seen is what an alert rests on.
    snapshot.read_by(lambda readings: _read_rollouts(readings, rollouts.latest))
    if certificates is not None:
        snapshot.read_by(
            lambda readings: readings.add(
                "sluice_tls_certificate_expiry_timestamp_seconds", certificates.expires()
            )
        )


def _begin_series(gateway: Gateway) -> None:
    """Start the series that alerts rely on at zero, for every version and arm that may answer."""
    begin, catalog, splits = gateway.metrics.begin, gateway.catalog, gateway.steering.splits()
    for name in ("", *catalog.names()):
        split = splits.get(name)
        arms = {} if split is None else {split.stable: "stable"}
        if split is not None and split.candidate is not None:
            arms[split.candidate] = "candidate"
        for arm in ("", *arms.values()):
            begin(name, "", arm)
        for number in catalog.versions(name) if name else ():
            for arm in {"", arms.get(number, "")}:
                begin(name, str(number), arm)


def _read_room(readings: Readings, gateway: Gateway) -> None:
    most, most_bytes = gateway.admission.limits
    readings.add("sluice_requests_in_flight_limit", most)
    readings.add("sluice_request_body_bytes", gateway.admission.held_bytes)
    readings.add("sluice_request_body_limit_bytes", most_bytes)
    readings.add("sluice_log_lines_lost", logs.STDERR.lost)
    readings.add("sluice_feedback_store_failures", gateway.steering.memory.failures)
    depths = gateway.batcher.depths()
    for name in gateway.catalog.names():
        readings.add("sluice_queue_depth", depths.get(name, 0), name)
        in_progress, limit = gateway.admission.progress_of(name)
        readings.add("sluice_requests_in_progress", in_progress, name)
        readings.add("sluice_requests_in_progress_limit", limit, name)


def _read_replicas(readings: Readings, pool: Pool, now: float) -> None:
    readings.add("sluice_replica_calls_retried", pool.retries)
    readings.add("sluice_replica_calls_hedged", pool.hedges)
    for replica in pool.replicas:
        readings.add("sluice_replica_calls_in_flight", replica.in_flight, replica.address)
        if replica.latency_s > 0.0:  # 0 is no latency, and would halve the mean over two gateways
            readings.add("sluice_replica_latency_seconds", replica.latency_s, replica.address)
        readings.add("sluice_replica_breaker_open", replica.left_alone(now), replica.address)


def _read_versions(readings: Readings, gateway: Gateway) -> None:
    for name in gateway.catalog.names():
        for number, known in gateway.catalog.versions(name).items():
            gateway.metrics.know(name, number, known.labels, known.card)
        for each in gateway.catalog.states(name):
            version = str(each.version)
            if each.ended_well and gateway.metrics.has_left(name, version):
                continue
            for state in STATES:
                readings.add("sluice_model_version_state", state == each.state, name, version, state)
    for (name, version), index in gateway.metrics.drift().items():
        readings.add("sluice_prediction_drift", index, name, version)


def _read_counts(readings: Readings, gateway: Gateway) -> None:
    for model in gateway.catalog.names():
        by_class: dict[tuple[str, str, str], float] = {}
        for key, count in _from_zero(gateway.steering.counts(model)).items():
            kind, version, *more = key.split("/", 2)
            if gateway.metrics.has_left(model, version):
                continue
            if kind in _COUNTS:
                readings.add(_COUNTS[kind], count, model, version)
            elif kind in _FAILED_ALONE:
                readings.add("sluice_shadow_failures", count, model, version, _FAILED_ALONE[kind])
            elif kind in _BY_CLASS:
                group = gateway.metrics.class_group(model, version, more[0])
                place = _BY_CLASS[kind], version, group
                by_class[place] = by_class.get(place, 0.0) + count
        for (name, version, group), count in by_class.items():
            readings.add(name, count, model, version, group)


def _from_zero(counts: Mapping[str, float]) -> dict[str, float]:
    """The counts, with zeros for what has not happened yet: a rate needs a beginning."""
    found = dict(counts)
    for key in counts:
        kind, _, of = key.partition("/")
        if kind in _OF_WHICH:
            found.setdefault(f"{_OF_WHICH[kind]}/{of}", 0.0)
    return found


def _read_rollouts(readings: Readings, rollouts: Iterable[Rollout]) -> None:
    for rollout in rollouts:
        _read_rollout(readings, rollout)


def _read_rollout(readings: Readings, rollout: Rollout) -> None:
    from serving.rollout.judge import alphas, signals

    model, state, split = rollout.model, rollout.state, rollout.split()
    versions = str(rollout.stable), str(rollout.candidate)
    readings.add("sluice_rollout_info", 1, model, state.phase.value, *versions)
    readings.add("sluice_rollout_step", state.step, model)
    share = 1.0 if split.stable == rollout.candidate else split.weight
    readings.add("sluice_rollout_traffic_share", share, model, "candidate")
    readings.add("sluice_rollout_traffic_share", 1.0 - share, model, "stable")
    moved_at = rollout.events[-1].at if rollout.events else rollout.started_at
    readings.add("sluice_rollout_moved_timestamp_seconds", moved_at, model)
    readings.add("sluice_rollout_seen_timestamp_seconds", rollout.seen_at or rollout.started_at, model)
    found = signals(rollout.plan, rollout.evidence, shadow=False).criteria
    levels = alphas(rollout.plan)
    for name, signal in found.items():
        limits = {"worse": -math.log(levels[name]), "good": -math.log(rollout.plan.alpha_promote)}
        for verdict, log_e in (("worse", signal.log_worse), ("good", signal.log_good)):
            readings.add("sluice_rollout_evidence", float(log_e), model, name, verdict)
            readings.add("sluice_rollout_evidence_limit", limits[verdict], model, name, verdict)
        for (arm, kind), count in observed(rollout, name).items():
            readings.add("sluice_rollout_observed", count, model, name, arm, kind)


def observed(rollout: Rollout, criterion: str) -> Mapping[tuple[str, str], float]:
    """What a rollout has counted under a criterion: (arm, `all` or `bad`) -> requests."""
    counts = rollout.evidence.criteria[criterion]
    return {
        ("candidate", "all"): float(counts.candidate_n),
        ("candidate", "bad"): float(counts.candidate_bad),
        ("stable", "all"): float(counts.stable_n),
        ("stable", "bad"): float(counts.stable_bad),
    }


class Rollouts:
    """The newest rollout of each model, read from the store at most once in `MAX_AGE_S`.

    Args:
        gateway: whose rollouts; it may run without any.
        clock: the monotonic clock, in seconds.

    Attributes:
        latest: those that were read last, without a look at the store.
    """

    MAX_AGE_S = 0.5

    def __init__(self, gateway: Gateway, clock: Callable[[], float] = time.monotonic) -> None:
        self._gateway = gateway
        self._clock = clock
        self.latest: list[Rollout] = []
        self._read_at = -math.inf

    def __call__(self) -> list[Rollout]:
        """The rollouts, by model."""
        if self._gateway.desk is None:
            return []
        if self._clock() - self._read_at >= self.MAX_AGE_S:
            self.latest = self._gateway.desk.newest()
            self._read_at = self._clock()
        return self.latest

"""Turns what gateways counted into intervals of evidence. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from serving.rollout import ledger as ledgers
from serving.rollout.counts import Counts, key, routed_key, weight_name
from serving.rollout.evidence import FloatArray
from serving.rollout.ledger import Arms, Interval, Ledger, Pairs
from serving.rollout.machine import weight_of
from serving.rollout.record import Rollout


def to_intervals(rollout: Rollout, ledger: Ledger, counts: Counts) -> tuple[Ledger, list[Interval]]:
    """The ledger, with room for new classes; and the counts as intervals of evidence on the two versions.

    Feedback comes late, on answers from several weights at once. Each weight gets an interval of its own: the
    tests go by the candidate's share of the answers, which depends on the weight.
    """
    candidate, stable = rollout.candidate, rollout.stable

    def count(kind: str, version: int, *more: str) -> float:
        return counts.get(key(kind, version, *more), 0.0)

    def arms(n: str, bad: str, *more: str) -> Arms:
        return Arms(
            count(n, candidate, *more),
            count(bad, candidate, *more),
            count(n, stable, *more),
            count(bad, stable, *more),
        )

    def pairs(n: str, candidate_only: str, stable_only: str) -> Pairs:
        return Pairs(*(count(kind, candidate) for kind in (n, candidate_only, stable_only)))

    latency = arms("requests", "slow")
    if rollout.latency_limit_s is None and not latency.candidate_bad and not latency.stable_bad:
        # It is not known yet what is slow; only what ran out of time is known to be.
        latency = Arms()
    found = {"errors": arms("calls", "failed"), "latency": latency}
    both = {
        "errors": pairs("copies", "candidate-failed", "stable-failed"),
        "accuracy": pairs("pairs", "candidate-wrong", "stable-wrong"),
    }
    for name in _new_classes(ledger, counts, candidate):
        ledger = ledgers.with_class(ledger, name)
    weight = weight_of(rollout.plan, rollout.state)
    unkeyed = (
        counts.get(routed_key("candidate", weight), 0.0),
        counts.get(routed_key("stable", weight), 0.0),
    )
    compared, agreed = (_by_class(ledger, counts, kind, candidate) for kind in ("compared", "agreed"))
    # Weights that differ in the seventh digit only share a name.
    weights = dict.fromkeys(weight_name(step.weight) for step in rollout.plan.canary)
    feedback = [
        Interval({"accuracy": arms("judged", "judged-wrong", each)}, weight=weight, late=each)
        for each in weights
    ]
    return ledger, [Interval(found, both, (compared, agreed), unkeyed, weight), *feedback]


def _new_classes(ledger: Ledger, counts: Counts, candidate: int) -> Iterable[str]:
    prefix = key("compared", candidate, "")
    names = (name.removeprefix(prefix) for name in counts if name.startswith(prefix))
    return sorted(set(names) - set(ledger.classes))


def _by_class(ledger: Ledger, counts: Counts, kind: str, candidate: int) -> FloatArray:
    return np.array([counts.get(key(kind, candidate, name), 0.0) for name in ledger.classes])

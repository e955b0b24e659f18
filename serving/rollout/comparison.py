"""What `sluice rollout simulate` reports: three versions, the plan and the others' rules side by side."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from serving.errors import InvalidInput
from serving.rollout.plan import Plan
from serving.rollout.rules import others, simulate_rules
from serving.rollout.simulate import PROMOTED, ROLLED_BACK, UNDECIDED, Proportion, Runs, simulate
from serving.rollout.traffic import Traffic

GOOD, MARGIN, GIVEN = "as good as stable", "worse by the margin", "as given"


@dataclass(frozen=True, slots=True)
class Row:
    """How one rule fared with one version."""

    version: str
    rule: str
    promoted: Proportion
    rolled_back: Proportion
    undecided: Proportion
    median_after_s: float | None
    median_exposed: float | None
    median_harmed: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was simulated, with what it was simulated from."""

    runs: int
    seed: int
    plan: str
    traffic: Traffic
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain values; times in seconds, shares with 95 % confidence intervals."""
        return dataclasses.asdict(self)


def compare(plan: Plan, traffic: Traffic, *, runs: int, seed: int) -> Report:
    """Simulates a good version, one just beyond the margin, and the given one, under every rule.

    The medians of a row are over the runs that ended as most of them did.

    Raises:
        InvalidInput: The plan waits for feedback, and none is simulated.
    """
    accuracy = plan.criteria.accuracy
    if accuracy is not None and accuracy.required:
        raise InvalidInput(
            "the plan waits for feedback (criteria.accuracy.required), and none is simulated: no version "
            "would ever be promoted; simulate it with `required: false`"
        )
    rows = []
    bad_error = traffic.candidate_error if traffic.candidate_error > traffic.stable_error else None
    for version, each in _versions(plan, traffic).items():
        ended = simulate(plan, each, runs=runs, seed=seed)
        rows.append(_row(version, "this plan", ended))
        rules = others(plan, each.stable_error, bad_error or 3.0 * each.stable_error)
        found = simulate_rules(rules, plan, each, runs=runs, seed=seed)
        rows += [_row(version, rule.name, each) for rule, each in zip(rules, found, strict=True)]
    return Report(runs, seed, plan.digest(), traffic, tuple(rows))


def _versions(plan: Plan, traffic: Traffic) -> dict[str, Traffic]:
    margins = {name: criterion.margin for name, criterion in plan.criteria.named().items()}
    good = dataclasses.replace(
        traffic, candidate_error=traffic.stable_error, candidate_slow=traffic.stable_slow
    )
    beyond = dataclasses.replace(
        traffic,
        candidate_error=min(1.0, traffic.stable_error * (1.0 + margins.get("errors", 0.0))),
        candidate_slow=min(1.0, traffic.stable_slow * (1.0 + margins.get("latency", 0.0))),
    )
    versions = {GOOD: good, MARGIN: beyond}
    if traffic not in versions.values():
        versions[GIVEN] = traffic
    return versions


def _row(version: str, rule: str, ended: Runs) -> Row:
    shares = {name: ended.share(name) for name in (PROMOTED, ROLLED_BACK, UNDECIDED)}
    most = max(shares, key=lambda name: shares[name].share)
    return Row(
        version,
        rule,
        shares[PROMOTED],
        shares[ROLLED_BACK],
        shares[UNDECIDED],
        ended.median_after_s(most),
        ended.median_exposed(most),
        ended.median_harmed(most),
    )

"""The rules by which other tools decide, on the same traffic: what a plan is compared with.

- Argo Rollouts: the example of its analysis documentation: every 5 minutes a success rate of at least 95 %;
  failed when more than `failureLimit` = 3 measurements have failed.
- Flagger: the example of its documentation: every minute a success rate of at least 99 %, rolled back at the
  10th failed check (`threshold`).
- Wald's sequential probability ratio test (1945) told both true rates: no rule that looks at the candidate's
  errors alone needs fewer requests on average for the same two error probabilities (Wald & Wolfowitz 1948).
  Nobody knows the true rates; it is the yardstick.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from serving.rollout.evidence import BoolArray, FloatArray
from serving.rollout.ledger import Interval
from serving.rollout.plan import Plan
from serving.rollout.simulate import PROMOTED, ROLLED_BACK, UNDECIDED, Runs
from serving.rollout.traffic import Source, Traffic


class Rule(Protocol):
    """Something that looks at the candidate's requests second by second and says stop."""

    name: str

    def start(self, runs: int) -> None:
        """Forgets everything; [runs] rollouts begin."""

    def look(self, n: FloatArray, bad: FloatArray, now: float) -> tuple[BoolArray, BoolArray]:
        """(roll back, promote) for each run, after n requests with some bad ones in the last second."""


@dataclass
class Threshold:
    """Rolls back at a number of intervals whose success rate was too low."""

    name: str
    interval_s: float
    least_success: float
    strikes: int

    def start(self, runs: int) -> None:
        """See `Rule`."""
        self._n, self._bad, self._failed = np.zeros(runs), np.zeros(runs), np.zeros(runs)

    def look(self, n: FloatArray, bad: FloatArray, now: float) -> tuple[BoolArray, BoolArray]:
        """See `Rule`."""
        self._n, self._bad = self._n + n, self._bad + bad
        if now % self.interval_s == 0.0:
            self._failed += self._bad > (1.0 - self.least_success) * self._n
            self._n, self._bad = np.zeros_like(self._n), np.zeros_like(self._bad)
        return self._failed >= self.strikes, np.zeros(len(n), dtype=np.bool_)


@dataclass
class Wald:
    """The sequential probability ratio test between two known error rates."""

    name: str
    good: float
    bad: float
    alpha: float
    beta: float

    def start(self, runs: int) -> None:
        """See `Rule`."""
        self._log_ratio = np.zeros(runs)

    def look(self, n: FloatArray, bad: FloatArray, now: float) -> tuple[BoolArray, BoolArray]:  # noqa: ARG002 - as in `Rule`
        """See `Rule`."""
        self._log_ratio += bad * math.log(self.bad / self.good)
        self._log_ratio += (n - bad) * math.log((1.0 - self.bad) / (1.0 - self.good))
        upper, lower = math.log((1.0 - self.beta) / self.alpha), math.log(self.beta / (1.0 - self.alpha))
        return self._log_ratio >= upper, self._log_ratio <= lower


def others(plan: Plan, stable_error: float, bad_error: float) -> list[Rule]:
    """The rules to compare with; the last one only where the two rates allow it."""
    rules: list[Rule] = [
        Threshold("Argo Rollouts\n95 % / 5 min, limit 3", 300.0, 0.95, 4),
        Threshold("Flagger\n99 % / min, limit 10", 60.0, 0.99, 10),
    ]
    if 0.0 < stable_error < bad_error < 1.0:
        rules.append(Wald("Wald's SPRT\ntold the true rates", stable_error, bad_error, plan.alpha, 0.01))
    return rules


def simulate_rules(
    rules: list[Rule], plan: Plan, traffic: Traffic, *, runs: int, seed: int, tick_s: float = 1.0
) -> list[Runs]:
    """Runs each rule on the plan's canary steps, each of the least length, all on the same requests.

    A rule that has not rolled back by the end of the steps promotes; Wald's test goes on at the last weight
    until it decides, or is undecided when the plan's time is up.
    """
    for rule in rules:
        rule.start(runs)
    results = [
        Runs(np.full(runs, PROMOTED, dtype="<U11"), *(np.zeros(runs) for _ in range(3))) for _ in rules
    ]
    going = [np.ones(runs, dtype=np.bool_) for _ in rules]
    source = Source(traffic, runs, tick_s, seed)
    ends = np.cumsum([step.min_time_s for step in plan.canary])
    horizon = plan.limits.canary_s if any(isinstance(rule, Wald) for rule in rules) else float(ends[-1])
    ticks = 0
    while ticks * tick_s < horizon and any(each.any() for each in going):
        ticks += 1
        now = ticks * tick_s
        step = min(int(np.searchsorted(ends, now, side="left")), len(plan.canary) - 1)
        interval = source.interval(np.full(runs, plan.canary[step].weight), np.zeros(runs))
        for rule, result, still in zip(rules, results, going, strict=True):
            if still.any():
                last = now >= ends[-1] and not isinstance(rule, Wald)
                _follow(rule, result, still, interval, now, last=last)
    for result, still in zip(results, going, strict=True):
        result.ended[still] = UNDECIDED
    return results


def _follow(
    rule: Rule, result: Runs, still: BoolArray, interval: Interval, now: float, *, last: bool
) -> None:
    """Lets a rule look at a second, and notes the runs that it ends."""
    errors, latency = interval.arms["errors"], interval.arms["latency"]
    n, bad = np.asarray(errors.candidate_n, float), np.asarray(errors.candidate_bad, float)
    result.exposed[still] += n[still]
    result.harmed[still] += (bad + np.asarray(latency.candidate_bad))[still]
    result.after_s[still] = now
    back, forth = rule.look(n, bad, now)
    result.ended[still & back] = ROLLED_BACK
    still &= ~(back | forth | last)

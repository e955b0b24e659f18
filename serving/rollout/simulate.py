"""Answers before the fact: what would this plan do with a good version, and with a bad one?

A thousand rollouts at once, second by second, with the ledger, the judgement and the state machine that the
controller uses. Replicas are assumed to load well; what is simulated is the traffic and the evidence from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from serving.rollout import ledger as ledgers
from serving.rollout.evidence import FloatArray
from serving.rollout.judge import OUTCOMES, outcomes, signals
from serving.rollout.machine import Phase, State, advance, next_look, shadow_of, weight_of
from serving.rollout.plan import Plan
from serving.rollout.traffic import Source, Traffic
from serving.rollout.verdict import Outcome, Reason, Verdict

_SIMULATED = frozenset({Phase.SHADOW, Phase.CANARY})

PROMOTED, ROLLED_BACK, UNDECIDED = "promoted", "rolled back", "undecided"


@dataclass(frozen=True, slots=True)
class Runs:
    """How each simulated rollout ended.

    Attributes:
        ended: `promoted`, `rolled back` or `undecided` (paused for lack of evidence), [runs].
        after_s: When, in seconds of traffic, [runs].
        exposed: Requests of callers that the candidate answered until then, [runs].
        harmed: How many of those were bad, by any criterion, [runs].
    """

    ended: npt.NDArray[np.str_]
    after_s: FloatArray
    exposed: FloatArray
    harmed: FloatArray

    def share(self, ended: str) -> Proportion:
        """The share of the runs that ended so, with its confidence interval."""
        return Proportion.of(int((self.ended == ended).sum()), len(self.ended))

    def median_exposed(self, ended: str) -> float | None:
        """The median number of exposed requests among the runs that ended so, None if there are none."""
        return _median(self.exposed[self.ended == ended])

    def median_harmed(self, ended: str) -> float | None:
        """The same for harmed requests."""
        return _median(self.harmed[self.ended == ended])

    def median_after_s(self, ended: str) -> float | None:
        """The same for the time, in seconds."""
        return _median(self.after_s[self.ended == ended])


def _median(values: FloatArray) -> float | None:
    return float(np.median(values)) if len(values) else None


@dataclass(frozen=True, slots=True)
class Proportion:
    """A share with its 95 % confidence interval (Clopper & Pearson 1934)."""

    share: float
    lower: float
    upper: float

    @classmethod
    def of(cls, found: int, among: int) -> Proportion:
        """The share `found` / `among`."""
        lower = 0.0 if found == 0 else float(betaincinv(found, among - found + 1, 0.025))
        upper = 1.0 if found == among else float(betaincinv(found + 1, among - found, 0.975))
        return cls(found / among, lower, upper)


class _Fleet:
    """The rollouts that are still going, and the results of those that have ended."""

    def __init__(self, plan: Plan, traffic: Traffic, runs: int) -> None:
        self._plan = plan
        first = Phase.SHADOW if plan.shadow.share > 0.0 else Phase.CANARY
        state = State(phase=first, canary_at=0.0 if first is Phase.CANARY else None)
        classes = tuple(str(index) for index in range(traffic.classes))
        self.tests = ledgers.tests_of(plan)
        self.ledger = ledgers.empty(self.tests, classes, (runs,))
        self.run = np.arange(runs)
        self.states = [state] * runs
        self.weight = np.full(runs, weight_of(plan, state))
        self.shadow = np.full(runs, shadow_of(plan, state))
        self.look_at = np.zeros(runs)
        self.outcome = np.full(runs, OUTCOMES.index(Outcome.WAIT))
        self.results = Runs(
            np.full(runs, UNDECIDED, dtype="<U11"), np.zeros(runs), np.zeros(runs), np.zeros(runs)
        )

    def step(self, source: Source, now: float) -> None:
        """One interval for all that are still going."""
        interval = source.interval(self.weight, self.shadow)
        self.ledger = ledgers.record(self.tests, self.ledger, interval)
        in_shadow = self.shadow > 0.0
        found = signals(self._plan, self.ledger, shadow=bool(in_shadow.any()))
        outcome = outcomes(self._plan, found, shadow=False)
        if found.agreement is not None:
            outcome = np.where(in_shadow, outcomes(self._plan, found, shadow=True), outcome)
        due = np.nonzero((outcome != self.outcome) | (now >= self.look_at))[0]
        self.outcome = outcome
        stepped = [row for row in due if self._advance(int(row), now)]
        if stepped:
            self.ledger = ledgers.clear_steps(self.ledger, np.array(stepped))
            self._drop_ended(source, now)

    def _advance(self, row: int, now: float) -> bool:
        """Advances one rollout; whether it moved."""
        before, outcome = self.states[row], OUTCOMES[self.outcome[row]]
        verdict = Verdict(outcome, (Reason(outcome.value, "simulated"),))
        after = advance(self._plan, before, verdict, now, float(self.ledger.step_requests[row]))
        self.states[row] = after
        self.look_at[row] = next_look(self._plan, after, outcome)
        if (after.phase, after.step) == (before.phase, before.step):
            return False
        self.weight[row] = weight_of(self._plan, after)
        self.shadow[row] = shadow_of(self._plan, after)
        return True

    def _drop_ended(self, source: Source, now: float) -> None:
        going = np.array([state.phase in _SIMULATED for state in self.states])
        if going.all():
            return
        ended = np.nonzero(~going)[0]
        names = {Phase.PROMOTING: PROMOTED, Phase.ROLLING_BACK: ROLLED_BACK}
        runs = self.run[ended]
        self.results.ended[runs] = [names.get(self.states[row].phase, UNDECIDED) for row in ended]
        self.results.after_s[runs] = now
        some = next(iter(self.ledger.criteria.values()))
        self.results.exposed[runs] = some.candidate_n[ended]
        bad = sum(criterion.candidate_bad for criterion in self.ledger.criteria.values())
        self.results.harmed[runs] = np.asarray(bad)[ended]
        rows = np.nonzero(going)[0]
        source.keep(rows)
        self.ledger = ledgers.select(self.ledger, rows)
        self.states = [self.states[row] for row in rows]
        for name in ("run", "weight", "shadow", "look_at", "outcome"):
            setattr(self, name, getattr(self, name)[rows])


def simulate(plan: Plan, traffic: Traffic, *, runs: int = 1000, seed: int = 0, tick_s: float = 1.0) -> Runs:
    """Runs `plan` against `traffic` many times over.

    Args:
        plan: The plan; its accuracy criterion sees no feedback.
        traffic: What the service and the two versions are like.
        runs: How many rollouts.
        seed: The same seed gives the same runs.
        tick_s: How often the controller looks.
    """
    fleet = _Fleet(plan, traffic, runs)
    source = Source(traffic, runs, tick_s, seed)
    ticks = 0
    while len(fleet.run):
        ticks += 1
        fleet.step(source, ticks * tick_s)
    return fleet.results

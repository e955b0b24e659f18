"""What a rollout has seen so far: counts, and the wealth that each test has won from them. Pure.

`record` takes a ledger and the counts of one interval, and returns the next ledger. Every leaf is an array
with the same leading shape: () in the controller, [runs] in the simulator, so both run the very same code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from serving.rollout import evidence
from serving.rollout.evidence import FloatArray, IntArray, Numbers, RiskMixture
from serving.rollout.plan import Plan

# An interval counts for at most as many bad events as intervals have had on average, plus this many standard
# deviations of a Poisson variable; but for at least one.
_MOST_EVENTS_DEVIATIONS = 3.0


@dataclass(frozen=True, slots=True)
class Tests:
    """One criterion's two tests, the limit on the rate of both arms together, and whether incidents occur.

    If bad events come in incidents, an interval with many of them counts for less. Feedback comes in batches
    of any size, which does not mean an incident: all of it counts.
    """

    worse: RiskMixture
    within: RiskMixture
    max_overall_rate: float | None
    incidents: bool


def tests_of(plan: Plan) -> dict[str, Tests]:
    """The tests that a plan asks for, by criterion."""
    return {
        name: Tests(
            evidence.worse_than_stable(),
            evidence.within_margin(criterion.margin),
            criterion.max_overall_rate,
            incidents=name != "accuracy",
        )
        for name, criterion in plan.criteria.named().items()
    }


@dataclass(frozen=True, slots=True)
class Arms:
    """One criterion's counts in one interval: requests of callers, and how many of them were bad."""

    candidate_n: Numbers = 0
    candidate_bad: Numbers = 0
    stable_n: Numbers = 0
    stable_bad: Numbers = 0


@dataclass(frozen=True, slots=True)
class Pairs:
    """One criterion's counts over requests that both versions answered: which of the two was bad."""

    n: Numbers = 0
    candidate_only: Numbers = 0
    stable_only: Numbers = 0


@dataclass(frozen=True, slots=True)
class Interval:
    """What one interval brought.

    Attributes:
        arms: By criterion, the callers' requests.
        pairs: By criterion, the copied requests.
        agreement: Copies that both versions answered, and those on which both named the same class; [..., C]
            by the class that the stable version named.
        unkeyed: Requests routed to the candidate and to stable by their own ids, [..., 2]: those for which
            the split should hold exactly, whoever the callers are.
        weight: The candidate's weight by which these were routed.
        late: Which earlier answers `arms` is about, such as those of one weight; empty: the interval's own.
    """

    arms: Mapping[str, Arms] = field(default_factory=dict)
    pairs: Mapping[str, Pairs] = field(default_factory=dict)
    agreement: tuple[Numbers, Numbers] | None = None
    unkeyed: Numbers = (0, 0)
    weight: Numbers = 0.0
    late: str = ""


@dataclass(frozen=True, slots=True)
class CriterionLedger:
    """One criterion's totals [...] and the wealth of its tests [..., K]."""

    candidate_n: FloatArray
    candidate_bad: FloatArray
    stable_n: FloatArray
    stable_bad: FloatArray
    candidate_only: FloatArray
    stable_only: FloatArray
    intervals: FloatArray
    counted: FloatArray
    worse: FloatArray
    within: FloatArray
    log_overall: FloatArray


@dataclass(frozen=True, slots=True)
class Ledger:
    """Everything that a verdict looks at.

    Attributes:
        criteria: By name.
        compared: Copies compared by stable's class, [..., C]; `agreed` those with the same class.
        classes: The C classes' names.
        split: Requests by their own ids since the weight last changed, [..., 2]: candidate, stable.
        split_weight: That weight.
        log_split_before: The split test's log E over earlier weights.
        step_requests: The candidate's requests since the step began.
        waiting: By criterion (and which earlier answers), the counts of one arm since both were last asked,
            [..., 4] as in `Arms`: they become evidence once the other arm is asked, too.
    """

    criteria: dict[str, CriterionLedger]
    compared: FloatArray
    agreed: FloatArray
    classes: tuple[str, ...]
    split: FloatArray
    split_weight: FloatArray
    log_split_before: FloatArray
    step_requests: FloatArray
    waiting: Mapping[str, FloatArray] = field(default_factory=dict)


def empty(tests: Mapping[str, Tests], classes: tuple[str, ...] = (), runs: tuple[int, ...] = ()) -> Ledger:
    """A ledger that has seen nothing; `runs` is the leading shape."""

    def criterion(each: Tests) -> CriterionLedger:
        zero = np.zeros(runs)
        wealth = [
            np.broadcast_to(mixture.log_start, (*runs, mixture.log_start.size))
            for mixture in (each.worse, each.within)
        ]
        return CriterionLedger(
            candidate_n=zero,
            candidate_bad=zero,
            stable_n=zero,
            stable_bad=zero,
            candidate_only=zero,
            stable_only=zero,
            intervals=zero,
            counted=zero,
            worse=wealth[0],
            within=wealth[1],
            log_overall=zero,
        )

    return Ledger(
        criteria={name: criterion(each) for name, each in tests.items()},
        compared=np.zeros((*runs, len(classes))),
        agreed=np.zeros((*runs, len(classes))),
        classes=classes,
        split=np.zeros((*runs, 2)),
        split_weight=np.zeros(runs),
        log_split_before=np.zeros(runs),
        step_requests=np.zeros(runs),
    )


def record(tests: Mapping[str, Tests], ledger: Ledger, interval: Interval) -> Ledger:
    """The ledger after an interval; the agreement's last axis must be the ledger's classes."""
    criteria, waiting = {}, dict(ledger.waiting)
    for name, before in ledger.criteria.items():
        after = before
        if name in interval.pairs:
            after = _record_pairs(tests[name], after, interval.pairs[name])
        if name in interval.arms:
            place = f"{name}/{interval.late}" if interval.late else name
            asked = waiting.get(place, 0.0) + _as_array(interval.arms[name], before.intervals.shape)
            after = _record_arms(tests[name], after, interval.arms[name], Arms(*np.moveaxis(asked, -1, 0)))
            both = (asked[..., 0] > 0) & (asked[..., 2] > 0)
            waiting[place] = np.where(both[..., None], 0.0, asked)
        criteria[name] = after
    compared, agreed = ledger.compared, ledger.agreed
    if interval.agreement is not None:
        compared = compared + np.asarray(interval.agreement[0])
        agreed = agreed + np.asarray(interval.agreement[1])
    split = _record_split(ledger, interval)
    requests = _candidate_requests(interval)
    return dataclasses.replace(
        split,
        criteria=criteria,
        compared=compared,
        agreed=agreed,
        step_requests=ledger.step_requests + requests,
        waiting=waiting,
    )


def _as_array(arms: Arms, shape: tuple[int, ...]) -> FloatArray:
    """The four counts as one array [..., 4]."""
    counts = arms.candidate_n, arms.candidate_bad, arms.stable_n, arms.stable_bad
    return np.stack([np.broadcast_to(np.asarray(each, np.float64), shape) for each in counts], axis=-1)


def _candidate_requests(interval: Interval) -> FloatArray:
    # Calls are counted for every kind of request, whether or not a plan judges them.
    arms = interval.arms.get("errors", Arms())
    return np.asarray(arms.candidate_n, dtype=np.float64)


def with_class(ledger: Ledger, name: str) -> Ledger:
    """The ledger with room for one more class."""
    room = np.zeros((*ledger.compared.shape[:-1], 1))
    return dataclasses.replace(
        ledger,
        classes=(*ledger.classes, name),
        compared=np.concatenate([ledger.compared, room], axis=-1),
        agreed=np.concatenate([ledger.agreed, room], axis=-1),
    )


def next_step(ledger: Ledger) -> Ledger:
    """The ledger when a step begins: its requests are counted from zero.

    What waits for the other arm is dropped, since that arm's share is different now; late answers stay.
    """
    waiting = {place: counts for place, counts in ledger.waiting.items() if place not in ledger.criteria}
    return dataclasses.replace(ledger, step_requests=np.zeros_like(ledger.step_requests), waiting=waiting)


def _record_pairs(tests: Tests, before: CriterionLedger, pairs: Pairs) -> CriterionLedger:
    both = Arms(pairs.n, pairs.candidate_only, pairs.n, pairs.stable_only)
    after = _record_events(tests, before, both, paired=True)
    return dataclasses.replace(
        after,
        candidate_only=before.candidate_only + np.asarray(pairs.candidate_only),
        stable_only=before.stable_only + np.asarray(pairs.stable_only),
    )


def _record_arms(tests: Tests, before: CriterionLedger, arms: Arms, asked: Arms) -> CriterionLedger:
    """Counts an interval's requests, and bets on all that came since both arms were last asked."""
    after = _record_events(tests, before, asked)
    candidate_n, candidate_bad, stable_n, stable_bad = (
        np.asarray(value, dtype=np.float64)
        for value in (arms.candidate_n, arms.candidate_bad, arms.stable_n, arms.stable_bad)
    )
    log_overall = before.log_overall
    if tests.max_overall_rate is not None:
        log_overall = evidence.log_rate_alarm(
            log_overall, candidate_bad + stable_bad, candidate_n + stable_n, tests.max_overall_rate
        )
    return dataclasses.replace(
        after,
        candidate_n=before.candidate_n + candidate_n,
        candidate_bad=before.candidate_bad + candidate_bad,
        stable_n=before.stable_n + stable_n,
        stable_bad=before.stable_bad + stable_bad,
        log_overall=log_overall,
    )


def _record_events(
    tests: Tests, before: CriterionLedger, arms: Arms, *, paired: bool = False
) -> CriterionLedger:
    """Bets on an interval's bad events; the wealth of runs that had none stays as it is."""
    shape = before.intervals.shape
    n_c, bad_c, n_s, bad_s = (
        np.broadcast_to(np.asarray(value, dtype=np.float64), shape)
        for value in (arms.candidate_n, arms.candidate_bad, arms.stable_n, arms.stable_bad)
    )
    both = (n_c > 0) & (n_s > 0)
    events = np.where(both, bad_c + bad_s, 0.0)
    usual = before.counted / np.maximum(before.intervals, 1.0)
    most = np.maximum(1.0, usual + _MOST_EVENTS_DEVIATIONS * np.sqrt(usual))
    if not tests.incidents:
        most = np.full_like(most, np.inf)
    worse, within = before.worse, before.within
    rows = np.nonzero(events) if shape else (() if events else None)
    if rows is None or (shape and not len(rows[0])):
        return dataclasses.replace(before, intervals=before.intervals + both)
    wealth = []
    for mixture, log_wealth in ((tests.worse, worse), (tests.within, within)):
        bad = bad_c[rows], bad_s[rows]
        if paired:
            ratios = evidence.mcnemar_ratios(mixture, *bad, n_c[rows], most[rows])
        else:
            ratios = evidence.two_arm_ratios(mixture, *bad, n_c[rows], n_s[rows], most[rows])
        updated = log_wealth.copy()
        updated[rows] = evidence.two_arm_update(mixture, log_wealth[rows], ratios)
        wealth.append(updated)
    return dataclasses.replace(
        before,
        intervals=before.intervals + both,
        counted=before.counted + np.minimum(events, most),
        worse=wealth[0],
        within=wealth[1],
    )


def _record_split(ledger: Ledger, interval: Interval) -> Ledger:
    # A copy: the caller may change its weights in place when the rollout moves.
    weight = np.array(np.broadcast_to(interval.weight, ledger.split_weight.shape), dtype=np.float64)
    changed = weight != ledger.split_weight
    split, before = ledger.split, ledger.log_split_before
    if changed.any():
        before = np.where(changed, before + log_split_now(ledger), before)
        split = np.where(changed[..., None], 0.0, split)
    return dataclasses.replace(
        ledger,
        split=split + np.asarray(interval.unkeyed),
        split_weight=weight,
        log_split_before=before,
    )


def log_split_now(ledger: Ledger) -> FloatArray:
    """Log E of the split test since the weight last changed, [...]."""
    shares = np.stack([ledger.split_weight, 1.0 - ledger.split_weight], axis=-1)
    return evidence.log_split(ledger.split, shares)


def select(ledger: Ledger, rows: IntArray) -> Ledger:
    """The ledgers of some runs, by index."""
    fields = {field.name for field in dataclasses.fields(CriterionLedger)}
    criteria = {
        name: CriterionLedger(**{each: getattr(criterion, each)[rows] for each in fields})
        for name, criterion in ledger.criteria.items()
    }
    return Ledger(
        criteria=criteria,
        compared=ledger.compared[rows],
        agreed=ledger.agreed[rows],
        classes=ledger.classes,
        split=ledger.split[rows],
        split_weight=ledger.split_weight[rows],
        log_split_before=ledger.log_split_before[rows],
        step_requests=ledger.step_requests[rows],
        waiting={place: counts[rows] for place, counts in ledger.waiting.items()},
    )


def clear_steps(ledger: Ledger, rows: IntArray) -> Ledger:
    """The ledger with the given runs' step requests counted from nothing; see `next_step`."""
    requests = ledger.step_requests.copy()
    requests[rows] = 0.0
    waiting = {place: counts.copy() for place, counts in ledger.waiting.items()}
    for counts in waiting.values():
        counts[rows] = 0.0
    return dataclasses.replace(ledger, step_requests=requests, waiting=waiting)

"""Judges a ledger by a plan: first as arrays of yes and no, then as a verdict with reasons. Pure.

The simulator uses the arrays of a thousand ledgers at once, the controller the verdict over one; both come
from `signals`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from serving.rollout import evidence
from serving.rollout.evidence import BoolArray, FloatArray, IntArray
from serving.rollout.ledger import CriterionLedger, Ledger, log_split_now
from serving.rollout.plan import Criterion, Plan
from serving.rollout.verdict import Outcome, Reason, Verdict, percent

# Two alarms can afford a high threshold: a service that fails as a whole, and a router that does not split
# as told, are beyond doubt within seconds. The split's alarm comes on top of alpha, at a level too small to
# matter. The whole service's is outside alpha: it asks whether the service is healthy, not which version is
# to blame, and a stall that has nothing to do with the candidate sets it off.
_LOG_ALARM = math.log(1e6)

# In the order in which they take precedence.
OUTCOMES = (Outcome.FAIL, Outcome.INCONCLUSIVE, Outcome.HOLD, Outcome.PASSED, Outcome.WAIT)

# Agreement's own weight in alpha beside the criteria's; half of it for all classes together.
_AGREEMENT_WEIGHT = 1.0


@dataclass(frozen=True, slots=True)
class CriterionSignals:
    """One criterion's values and what follows from them, [...] each."""

    log_worse: FloatArray
    log_good: FloatArray
    worse: BoolArray
    suspicious: BoolArray
    good: BoolArray
    overall: BoolArray


@dataclass(frozen=True, slots=True)
class AgreementSignals:
    """What the copies say, [...] each; `class_differs` is [..., C]. All false while nothing was compared."""

    differs: BoolArray
    class_differs: BoolArray
    agrees: BoolArray


@dataclass(frozen=True, slots=True)
class Signals:
    """All that a ledger says, [...] each; `agreement` only while requests are copied."""

    criteria: dict[str, CriterionSignals]
    agreement: AgreementSignals | None
    split_broken: BoolArray


def alphas(plan: Plan) -> dict[str, float]:
    """How alpha is divided among the guards (a union bound): each criterion, and `agreement`.

    Accuracy has its part from the start, even if no feedback ever comes: a level that depended on whether it
    comes would not be known in advance.
    """
    weights = {name: criterion.alpha_weight for name, criterion in plan.criteria.named().items()}
    if plan.shadow.share > 0.0:
        weights["agreement"] = _AGREEMENT_WEIGHT
    total = sum(weights.values())
    return {name: plan.alpha * weight / total for name, weight in weights.items()}


def signals(plan: Plan, ledger: Ledger, *, shadow: bool) -> Signals:
    """What the ledger says under the plan, in the shadow phase or in the canary."""
    levels = alphas(plan)
    criteria = {
        name: _criterion_signals(plan, criterion, ledger.criteria[name], levels[name])
        for name, criterion in plan.criteria.named().items()
    }
    agreement = _agreement(plan, ledger, levels["agreement"]) if shadow else None
    log_split = ledger.log_split_before + log_split_now(ledger)
    return Signals(criteria, agreement, log_split >= _LOG_ALARM)


def _criterion_signals(
    plan: Plan, criterion: Criterion, ledger: CriterionLedger, alpha: float
) -> CriterionSignals:
    log_worse = evidence.log_sum_exp(ledger.worse)
    log_good = evidence.log_sum_exp(ledger.within)
    if criterion.acceptable_rate is not None:
        below = evidence.log_rate_below(ledger.candidate_bad, ledger.candidate_n, criterion.acceptable_rate)
        # A version that must not pass is above both limits; the mean of two e-values is one under both.
        log_good = np.logaddexp(log_good, below) - math.log(2)
    return CriterionSignals(
        log_worse=log_worse,
        log_good=log_good,
        worse=log_worse >= -math.log(alpha),
        suspicious=log_worse >= math.log(plan.hold_at),
        good=log_good >= -math.log(plan.alpha_promote),
        overall=ledger.log_overall >= _LOG_ALARM,
    )


def _agreement(plan: Plan, ledger: Ledger, alpha: float) -> AgreementSignals:
    compared, agreed = ledger.compared.sum(axis=-1), ledger.agreed.sum(axis=-1)
    shadow = plan.shadow
    levels = alpha / 2 * _class_parts(len(ledger.classes))
    return AgreementSignals(
        differs=evidence.mean_is_below(agreed, compared, shadow.min_agreement, alpha / 2),
        class_differs=evidence.mean_is_below(
            ledger.agreed, ledger.compared, shadow.min_class_agreement, levels
        ),
        agrees=evidence.mean_is_below(
            compared - agreed, compared, 1.0 - shadow.min_agreement, plan.alpha_promote
        )
        & (compared >= shadow.min_samples),
    )


def _class_parts(classes: int) -> FloatArray:
    """Each class's part of a level, [C]: 1/2, 1/6, 1/12 … in order of appearance, 1 over all there can be."""
    j = np.arange(1.0, classes + 1.0)
    parts: FloatArray = 1.0 / (j * (j + 1.0))
    return parts


def outcomes(plan: Plan, found: Signals, *, shadow: bool) -> IntArray:
    """The outcome of each run as an index into `OUTCOMES`, [...]; `shadow` says which phase is judged."""
    fail = np.zeros_like(found.split_broken)
    hold = np.zeros_like(fail)
    for guard in found.criteria.values():
        fail = fail | guard.worse | guard.overall
        hold = hold | guard.suspicious
    if shadow and found.agreement is not None:
        fail = fail | found.agreement.differs | found.agreement.class_differs.any(axis=-1)
        passed = found.agreement.agrees
    else:
        passed = np.ones_like(fail)
        for name, criterion in plan.criteria.named().items():
            passed = passed & (found.criteria[name].good | (not criterion.required))
    conditions = [fail, found.split_broken, hold, passed, np.ones_like(fail)]
    chosen: IntArray = np.argmax(np.stack(conditions), axis=0)
    return chosen


def judge(plan: Plan, ledger: Ledger, *, shadow: bool) -> Verdict:
    """The verdict over one rollout's ledger (leading shape ()), with every reason, the deciding one first."""
    found = signals(plan, ledger, shadow=shadow)
    outcome = OUTCOMES[int(outcomes(plan, found, shadow=shadow))]
    reasons = [*_harm(plan, ledger, found), *_split(ledger, found), *_doubts(plan, ledger, found)]
    if found.agreement is not None:
        reasons.append(_agreement_progress(plan, ledger, found.agreement))
    else:
        reasons += _criteria_progress(plan, ledger, found)
    return Verdict(outcome, tuple(reasons))


def _harm(plan: Plan, ledger: Ledger, found: Signals) -> list[Reason]:
    levels = alphas(plan)
    reasons = []
    for name, signal in found.criteria.items():
        if signal.worse:
            values = _numbers(ledger.criteria[name], signal, "worse", 1 / levels[name])
            text = f"more bad events ({name}) than stable: {_counts(values)}"
            reasons.append(Reason(f"{name}.worse", text, values))
    if found.agreement is not None:
        reasons += _disagreement(plan, ledger, found.agreement)
    for name, signal in found.criteria.items():
        limit = getattr(plan.criteria, name).max_overall_rate
        if signal.overall:
            text = f"both versions together: more than {percent(limit)} bad ({name}) while the candidate is "
            text += "there (outside alpha: it compares nothing, and a stall or too much load sounds it, too)"
            reasons.append(Reason(f"{name}.overall", text, {"limit": limit}))
    return reasons


def _disagreement(plan: Plan, ledger: Ledger, found: AgreementSignals) -> list[Reason]:
    reasons = []
    alpha = alphas(plan)["agreement"] / 2
    if found.differs:
        compared, agreed = float(ledger.compared.sum()), float(ledger.agreed.sum())
        values = _agreement_numbers(agreed, compared, plan.shadow.min_agreement, alpha)
        text = f"names the same class as stable on {agreed / compared:.1%} of {compared:.0f} copies"
        reasons.append(Reason("agreement.below", text, values))
    parts = _class_parts(len(ledger.classes))
    for index in np.nonzero(found.class_differs)[0]:
        compared, agreed = float(ledger.compared[index]), float(ledger.agreed[index])
        level = alpha * float(parts[index])
        values = _agreement_numbers(agreed, compared, plan.shadow.min_class_agreement, level)
        share = f"{agreed / compared:.1%} of {compared:.0f} copies"
        text = f'of what stable calls "{ledger.classes[index]}", the same class on {share}'
        reasons.append(Reason("agreement.class-below", text, values))
    return reasons


def _split(ledger: Ledger, found: Signals) -> list[Reason]:
    if not found.split_broken:
        return []
    candidate, stable = (float(count) for count in ledger.split)
    weight = float(ledger.split_weight)
    share = candidate / max(1.0, candidate + stable)
    text = (
        f"the candidate got {share:.2%} of the requests, not {weight:.2%}: the split is not what it should be"
    )
    return [Reason("split.broken", text, {"candidate": candidate, "stable": stable, "weight": weight})]


def _doubts(plan: Plan, ledger: Ledger, found: Signals) -> list[Reason]:
    reasons = []
    for name, signal in found.criteria.items():
        if signal.suspicious and not signal.worse:
            values = _numbers(ledger.criteria[name], signal, "worse", plan.hold_at)
            text = f"some evidence of more bad events ({name}): {_counts(values)}; the weight waits"
            reasons.append(Reason(f"{name}.suspicious", text, values))
    return reasons


def _criteria_progress(plan: Plan, ledger: Ledger, found: Signals) -> list[Reason]:
    reasons = []
    for name, signal in found.criteria.items():
        criterion = getattr(plan.criteria, name)
        values = _numbers(ledger.criteria[name], signal, "good", 1 / plan.alpha_promote)
        if signal.good:
            text = f"{_within(criterion)} ({name}): {_counts(values)}"
            reasons.append(Reason(f"{name}.good", text, values))
        elif criterion.required:
            text = f"not yet shown: {_within(criterion)} ({name}): {_counts(values)}"
            reasons.insert(0, Reason(f"{name}.undecided", text, values))
    return reasons


def _within(criterion: Criterion) -> str:
    """What is to be shown of a good version."""
    text = f"not worse than stable by more than {percent(criterion.margin)}"
    if criterion.acceptable_rate is not None:
        text += f", or bad in less than {percent(criterion.acceptable_rate)}"
    return text


def _agreement_progress(plan: Plan, ledger: Ledger, found: AgreementSignals) -> Reason:
    compared, agreed = float(ledger.compared.sum()), float(ledger.agreed.sum())
    values = _agreement_numbers(agreed, compared, plan.shadow.min_agreement, plan.alpha_promote)
    values["min_samples"] = float(plan.shadow.min_samples)
    if found.agrees:
        return Reason(
            "agreement.good", f"agrees with stable on {agreed:.0f} of {compared:.0f} copies", values
        )
    return Reason(
        "agreement.undecided", f"agreement not yet shown: {agreed:.0f} of {compared:.0f} copies", values
    )


def _numbers(ledger: CriterionLedger, signal: CriterionSignals, which: str, limit: float) -> dict[str, float]:
    log_e = signal.log_worse if which == "worse" else signal.log_good
    return {
        "candidate_bad": float(ledger.candidate_bad),
        "candidate_n": float(ledger.candidate_n),
        "stable_bad": float(ledger.stable_bad),
        "stable_n": float(ledger.stable_n),
        "candidate_only": float(ledger.candidate_only),
        "stable_only": float(ledger.stable_only),
        "log_e": float(log_e),
        "log_limit": math.log(limit),
    }


def _counts(values: dict[str, float]) -> str:
    text = "candidate {candidate_bad:.0f} of {candidate_n:.0f}, stable {stable_bad:.0f} of {stable_n:.0f}"
    if values["candidate_only"] or values["stable_only"]:
        text += "; of the copies only the candidate {candidate_only:.0f}, only stable {stable_only:.0f}"
    e, limit = (math.exp(min(values[key], 700.0)) for key in ("log_e", "log_limit"))
    return text.format(**values) + f" (e = {e:.3g}, limit {limit:.3g})"


def _agreement_numbers(agreed: float, compared: float, limit: float, alpha: float) -> dict[str, float]:
    lower, upper = evidence.confidence_sequence(agreed, compared, alpha)
    return {
        "agreed": agreed,
        "compared": compared,
        "lower": float(lower),
        "upper": float(upper),
        "min_agreement": limit,
    }

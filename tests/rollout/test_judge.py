from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from serving.rollout import evidence
from serving.rollout import ledger as ledgers
from serving.rollout.counts import Counts
from serving.rollout.judge import OUTCOMES, _class_parts, alphas, judge, outcomes, signals
from serving.rollout.ledger import Arms, Interval, Ledger, Pairs
from serving.rollout.machine import Phase, State
from serving.rollout.observation import to_intervals
from serving.rollout.plan import Plan
from serving.rollout.record import Rollout
from serving.rollout.traffic import Source, Traffic
from serving.rollout.verdict import Outcome, Verdict
from tests.rollout.stored import new_rollout

PLAN = Plan()
TESTS = ledgers.tests_of(PLAN)


def seen(*intervals: Interval, plan: Plan = PLAN, classes: tuple[str, ...] = ()) -> Ledger:
    tests = ledgers.tests_of(plan)
    ledger = ledgers.empty(tests, classes)
    for interval in intervals:
        ledger = ledgers.record(tests, ledger, interval)
    return ledger


def errors(candidate_n: int, candidate_bad: int, stable_n: int, stable_bad: int) -> Interval:
    arms = Arms(candidate_n, candidate_bad, stable_n, stable_bad)
    return Interval({"errors": arms, "latency": Arms(candidate_n, 0, stable_n, 0)}, weight=0.5)


def test_nothing_seen_says_nothing() -> None:
    for shadow in (True, False):
        verdict = judge(PLAN, seen(), shadow=shadow)
        assert verdict.outcome is Outcome.WAIT
        assert verdict.reason.code.endswith(".undecided")


@pytest.mark.parametrize("share", [0.2, 0.0])
def test_the_guards_parts_of_alpha_come_to_the_whole(share: float) -> None:
    levels = alphas(PLAN.model_copy(update={"shadow": PLAN.shadow.model_copy(update={"share": share})}))
    assert sum(levels.values()) == pytest.approx(PLAN.alpha)
    assert ("agreement" in levels) == (share > 0.0)
    assert levels["errors"] == pytest.approx(7.0 * levels["latency"])


@pytest.mark.parametrize("classes", [1, 3, 1000])
def test_the_classes_parts_of_a_level_come_to_no_more_than_the_whole(classes: int) -> None:
    parts = _class_parts(classes)
    assert 0.5 <= parts.sum() <= 1.0
    assert (np.diff(parts) < 0.0).all()


@pytest.mark.parametrize(("copies", "differs"), [(8, False), (9, True)])
def test_the_first_class_has_a_quarter_of_agreement_s_part(copies: int, differs: bool) -> None:
    """Half of it is for all classes together, and half of the rest for those that come later."""
    ledger = seen(Interval(agreement=([copies], [0])), classes=("3",))
    found = signals(PLAN, ledger, shadow=True).agreement
    assert found is not None
    wealth = evidence.log_betting_wealth(0, copies, PLAN.shadow.min_class_agreement)
    assert (wealth >= -math.log(alphas(PLAN)["agreement"] / 4)) == differs
    assert found.class_differs.tolist() == [differs]


def test_all_classes_together_have_half_of_agreement_s_part() -> None:
    for copies in range(1, 13):
        for agreed in range(copies):
            ledger = seen(Interval(agreement=([copies], [agreed])), classes=("3",))
            found = signals(PLAN, ledger, shadow=True).agreement
            assert found is not None
            wealth = evidence.log_betting_wealth(agreed, copies, PLAN.shadow.min_agreement)
            enough = wealth >= -math.log(alphas(PLAN)["agreement"] / 2)
            assert bool(found.differs) == (enough and agreed < PLAN.shadow.min_agreement * copies)


def test_every_wealth_is_one_at_the_start() -> None:
    for each in signals(PLAN, seen(), shadow=False).criteria.values():
        assert (float(each.log_worse), float(each.log_good)) == pytest.approx((0.0, 0.0))


def test_more_errors_than_stable_fail_with_the_counts_in_the_reason() -> None:
    verdict = judge(PLAN, seen(*[errors(50, 2, 950, 5)] * 20), shadow=False)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.reason.code == "errors.worse"
    assert "errors.suspicious" not in {each.code for each in verdict.reasons}, "it is more than that"
    assert "candidate 40 of 1000, stable 100 of 19000" in verdict.reason.text
    assert verdict.reason.values["log_e"] >= verdict.reason.values["log_limit"]
    assert verdict.reason.values["log_limit"] == pytest.approx(-math.log(alphas(PLAN)["errors"]))


def test_some_evidence_holds() -> None:
    verdict = judge(PLAN, seen(*[errors(5, 1, 95, 0)] * 2), shadow=False)
    assert verdict.outcome is Outcome.HOLD
    assert verdict.reason.code == "errors.suspicious"


def test_as_few_errors_as_stable_pass_once_there_are_enough() -> None:
    plan = Plan.model_validate({"criteria": {"latency": None}})
    few = judge(plan, seen(*[errors(500, 2, 500, 2)] * 10, plan=plan), shadow=False)
    many = judge(plan, seen(*[errors(500, 2, 500, 2)] * 100, plan=plan), shadow=False)
    assert (few.outcome, many.outcome) == (Outcome.WAIT, Outcome.PASSED)
    assert many.reason.code == "errors.good"


def test_a_version_without_any_error_passes_by_its_rate_alone() -> None:
    plan = Plan.model_validate({"criteria": {"latency": None}})
    assert (
        judge(plan, seen(*[errors(500, 0, 500, 0)] * 100, plan=plan), shadow=False).outcome is Outcome.PASSED
    )


def test_an_incident_that_hits_both_is_nobodys_fault() -> None:
    calm = [errors(50, 0, 950, 5)] * 100
    incident = [errors(50, 10, 950, 190)] * 60
    assert judge(PLAN, seen(*calm, *incident), shadow=False).outcome is not Outcome.FAIL


def test_a_service_that_fails_as_a_whole_is_rolled_back() -> None:
    verdict = judge(PLAN, seen(*[errors(50, 40, 950, 760)] * 3), shadow=False)
    assert (verdict.outcome, verdict.reason.code) == (Outcome.FAIL, "errors.overall")
    assert "outside alpha: it compares nothing" in verdict.reason.text


def test_errors_of_copies_count() -> None:
    copies = Interval(pairs={"errors": Pairs(100, 3, 0)})
    verdict = judge(PLAN, seen(*[copies] * 20), shadow=True)
    assert verdict.reason.code == "errors.worse"
    assert "of the copies only the candidate 60, only stable 0" in verdict.reason.text


def test_disagreement_fails_overall_and_in_one_class() -> None:
    permuted = Interval(agreement=([50, 50], [5, 5]))
    verdict = judge(PLAN, seen(permuted, classes=("3", "7")), shadow=True)
    assert (verdict.outcome, verdict.reason.code) == (Outcome.FAIL, "agreement.below")
    compared = [100] * 10
    one_broken = Interval(agreement=(compared, [5] + [99] * 9))
    plan = Plan.model_validate({"shadow": {"min_agreement": 0.85}})
    classes = tuple("0123456789")
    verdict = judge(plan, seen(one_broken, plan=plan, classes=classes), shadow=True)
    assert (verdict.outcome, verdict.reason.code) == (Outcome.FAIL, "agreement.class-below")
    assert 'of what stable calls "0"' in verdict.reason.text


def test_agreement_passes_when_it_is_shown_on_enough_copies() -> None:
    good = Interval(agreement=([100, 100], [98, 99]))
    assert judge(PLAN, seen(good, classes=("3", "7")), shadow=True).outcome is Outcome.WAIT
    verdict = judge(PLAN, seen(*[good] * 3, classes=("3", "7")), shadow=True)
    assert (verdict.outcome, verdict.reason.code) == (Outcome.PASSED, "agreement.good")


def test_a_split_that_is_not_the_split_is_inconclusive() -> None:
    skewed = Interval(unkeyed=(300, 700), weight=0.05)
    verdict = judge(PLAN, seen(skewed), shadow=False)
    assert (verdict.outcome, verdict.reason.code) == (Outcome.INCONCLUSIVE, "split.broken")
    fair = [Interval(unkeyed=(50, 950), weight=0.05), Interval(unkeyed=(250, 750), weight=0.25)]
    assert judge(PLAN, seen(*fair), shadow=False).outcome is Outcome.WAIT
    after = seen(skewed, Interval(unkeyed=(250, 750), weight=0.25))
    assert judge(PLAN, after, shadow=False).outcome is Outcome.INCONCLUSIVE, "it is not forgotten"


def test_harm_comes_before_a_broken_split_and_that_before_a_doubt() -> None:
    broken = Interval(unkeyed=(300, 700), weight=0.5)
    doubt, harm = [errors(5, 1, 95, 0)] * 2, [errors(50, 2, 950, 5)] * 20
    assert judge(PLAN, seen(broken, *doubt), shadow=False).outcome is Outcome.INCONCLUSIVE
    assert judge(PLAN, seen(broken, *harm), shadow=False).outcome is Outcome.FAIL


def test_a_doubt_about_one_criterion_holds_though_the_others_have_passed() -> None:
    plan = Plan.model_validate({"criteria": {"latency": None}})
    passed = [errors(500, 2, 500, 2)] * 100
    assert judge(plan, seen(*passed, plan=plan), shadow=False).outcome is Outcome.PASSED
    wrong = Interval({"accuracy": Arms(20, 9, 20, 1)}, weight=0.5)
    assert judge(plan, seen(*passed, wrong, plan=plan), shadow=False).outcome is Outcome.HOLD


@pytest.mark.parametrize(("criterion", "counted"), [("errors", 9.0 + 4.0), ("accuracy", 9.0 + 100.0)])
def test_an_incident_counts_for_three_deviations_beyond_the_usual_and_feedback_whole(
    criterion: str, counted: float
) -> None:
    calm, incident = Arms(50, 0, 50, 1), Arms(50, 50, 50, 50)
    ledger = seen(*(Interval({criterion: each}) for each in [calm] * 9 + [incident]))
    assert float(ledger.criteria[criterion].counted) == counted


def test_feedback_guards_but_is_not_waited_for() -> None:
    wrong = Interval({"accuracy": Arms(50, 20, 950, 95)})
    verdict = judge(PLAN, seen(*[wrong] * 15), shadow=False)
    assert (verdict.outcome, verdict.reason.code) == (Outcome.FAIL, "accuracy.worse")


@pytest.mark.parametrize("candidate_error", [0.005, 0.03])
def test_many_ledgers_at_once_say_what_each_says_alone(candidate_error: float) -> None:
    runs, ticks = 6, 120
    traffic = Traffic(candidate_error=candidate_error, incidents_per_hour=30.0, classes=3)
    source = Source(traffic, runs, 1.0, seed=5)
    weight = np.where(np.arange(runs) % 2, 0.1, 0.5)
    names = ("0", "1", "2")
    together = ledgers.empty(TESTS, names, (runs,))
    alone = [ledgers.empty(TESTS, names) for _ in range(runs)]
    for tick in range(ticks):
        interval = source.interval(
            weight, np.where(np.arange(runs) < 3, 0.2, 0.0) if tick < 60 else np.zeros(runs)
        )
        together = ledgers.record(TESTS, together, interval)
        alone = [ledgers.record(TESTS, ledger, one_of(interval, run)) for run, ledger in enumerate(alone)]
    for shadow in (True, False):
        codes = outcomes(PLAN, signals(PLAN, together, shadow=shadow), shadow=shadow)
        assert [OUTCOMES[code] for code in codes] == [
            judge(PLAN, each, shadow=shadow).outcome for each in alone
        ]
    np.testing.assert_allclose(
        together.criteria["errors"].worse, [each.criteria["errors"].worse for each in alone]
    )


def one_of(interval: Interval, run: int) -> Interval:
    """One run's part of an interval of many."""

    def at(numbers: object) -> float:
        return float(np.asarray(numbers)[run])

    arms = {
        name: Arms(at(each.candidate_n), at(each.candidate_bad), at(each.stable_n), at(each.stable_bad))
        for name, each in interval.arms.items()
    }
    pairs = {
        name: Pairs(at(each.n), at(each.candidate_only), at(each.stable_only))
        for name, each in interval.pairs.items()
    }
    agreement = interval.agreement
    if agreement is not None:
        agreement = (np.asarray(agreement[0])[run], np.asarray(agreement[1])[run])
    return Interval(arms, pairs, agreement, np.asarray(interval.unkeyed)[run], at(interval.weight))


def test_what_was_answered_before_anybody_knew_what_is_slow_shows_nothing() -> None:
    rollout = replace(new_rollout(), plan=PLAN, state=State(Phase.CANARY))
    counts = {"requests/1": 50_000.0, "requests/2": 5_000.0}

    def verdict(rollout: Rollout, counts: Counts) -> Verdict:
        ledger, (interval, *_) = to_intervals(rollout, rollout.evidence, counts)
        return judge(PLAN, ledgers.record(TESTS, ledger, interval), shadow=False)

    codes = [
        {each.code for each in verdict(replace(rollout, latency_limit_s=limit), counts).reasons}
        for limit in (None, 0.2)
    ]
    assert ["latency.good" in each for each in codes] == [False, True]
    late = verdict(rollout, counts | {"slow/2": 500.0, "slow/1": 1.0})
    assert late.reason.code != "latency.undecided", "what ran out of its time is known to be slow"
    for version in (1, 2):
        _, (interval, *_) = to_intervals(rollout, rollout.evidence, counts | {f"slow/{version}": 9.0})
        assert interval.arms["latency"].candidate_n == 5_000.0, "whichever version it was"


def test_a_class_is_one_however_often_it_is_named() -> None:
    rollout = replace(new_rollout(), state=State(Phase.SHADOW))
    ledger = rollout.evidence
    for counts in ({"compared/2/seven": 3.0, "agreed/2/seven": 2.0}, {"compared/2/seven": 1.0}):
        ledger, (interval, *_) = to_intervals(rollout, ledger, counts)
        ledger = ledgers.record(ledgers.tests_of(rollout.plan), ledger, interval)
    assert (ledger.classes, ledger.compared.tolist(), ledger.agreed.tolist()) == (("seven",), [4.0], [2.0])


def test_weights_that_are_called_alike_are_counted_once() -> None:
    plan = Plan.model_validate({"canary": [{"weight": 0.5}, {"weight": 0.50000001}]})
    rollout = replace(new_rollout(), plan=plan, state=State(Phase.CANARY))
    _, (_, *feedback) = to_intervals(rollout, rollout.evidence, {"judged/1/0.5": 4.0, "judged/2/0.5": 3.0})
    assert [each.arms["accuracy"].stable_n for each in feedback] == [4.0]


def test_what_one_arm_alone_brought_is_evidence_once_the_other_was_asked() -> None:
    candidate, stable = Interval({"errors": Arms(5, 5, 0, 0)}), Interval({"errors": Arms(0, 0, 7, 1)})
    alone = seen(candidate).criteria["errors"]
    assert (float(alone.intervals), float(alone.counted), float(alone.candidate_bad)) == (0.0, 0.0, 5.0)
    np.testing.assert_array_equal(alone.worse, TESTS["errors"].worse.log_start)
    both, at_once = (
        seen(*intervals).criteria["errors"]
        for intervals in ((candidate, stable), (Interval({"errors": Arms(5, 5, 7, 1)}),))
    )
    for name in ("intervals", "counted", "candidate_bad", "stable_n", "worse", "within"):
        np.testing.assert_array_equal(getattr(both, name), getattr(at_once, name), name)
    again = seen(candidate, stable, stable).criteria["errors"]
    assert float(again.intervals) == 1.0, "it counts once"


def test_what_waits_for_the_other_arm_is_dropped_with_the_weight() -> None:
    stable, candidate = Interval({"errors": Arms(0, 0, 500, 40)}), Interval({"errors": Arms(1, 0, 0, 0)})
    kept, dropped = (
        ledgers.record(TESTS, between, candidate).criteria["errors"]
        for between in (seen(stable), ledgers.next_step(seen(stable)))
    )
    assert (float(kept.intervals), float(dropped.intervals)) == (1.0, 0.0)
    runs = ledgers.empty(TESTS, runs=(2,))
    runs = ledgers.clear_steps(ledgers.record(TESTS, runs, stable), np.array([1]))
    runs = ledgers.record(TESTS, runs, candidate)
    np.testing.assert_array_equal(runs.criteria["errors"].intervals, [1.0, 0.0])
    np.testing.assert_array_equal(ledgers.select(runs, np.array([1])).waiting["errors"], [[1, 0, 0, 0]])


def test_a_service_of_one_request_a_minute_finds_a_version_that_always_fails() -> None:
    found = [
        Interval({"errors": Arms(1, 1, 0, 0) if turn % 5 == 4 else Arms(0, 0, 1, 0)}) for turn in range(50)
    ]
    assert judge(PLAN, seen(*found), shadow=False).reason.code == "errors.worse"


def test_a_step_counts_its_requests_whatever_the_plan_judges_by() -> None:
    only = {"errors": None, "latency": None, "accuracy": {"required": True}}
    plan = Plan.model_validate({"criteria": only})
    rollout = replace(new_rollout(), plan=plan, state=State(Phase.CANARY))
    ledger, (interval, *_) = to_intervals(rollout, rollout.evidence, {"calls/2": 70.0, "calls/1": 9.0})
    assert float(ledgers.record(ledgers.tests_of(plan), ledger, interval).step_requests) == 70.0

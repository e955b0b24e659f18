"""The figures of `tests.rollout.figures` with fewer runs; a correct plan fails them once in 10^5 times."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import bdtrc

from serving.errors import InvalidInput
from serving.rollout import simulate as simulation
from serving.rollout.comparison import GIVEN, GOOD, MARGIN, compare
from serving.rollout.machine import State
from serving.rollout.plan import Plan
from serving.rollout.rules import Threshold, Wald, simulate_rules
from serving.rollout.simulate import PROMOTED, ROLLED_BACK, UNDECIDED, Proportion, simulate
from serving.rollout.traffic import Traffic
from serving.rollout.verdict import Outcome

PLAN = Plan()
CANARY_ONLY = Plan.model_validate({"shadow": {"share": 0.0}})
QUICK = Plan.model_validate(
    {
        "shadow": {"min_time_s": 20, "min_samples": 100},
        "canary": [{"weight": 0.1, "min_time_s": 30}, {"weight": 0.5, "min_time_s": 30}],
        "limits": {"canary_s": 900},
    }
)


def test_a_good_version_is_promoted_and_seldom_rolled_back_even_with_incidents() -> None:
    runs = 300
    ended = simulate(PLAN, Traffic(incidents_per_hour=2.0), runs=runs, seed=11, tick_s=2.0)
    rolled_back = int((ended.ended == ROLLED_BACK).sum())
    assert bdtrc(rolled_back - 1, runs, PLAN.alpha) > 1e-5
    assert ended.share(PROMOTED).share > 0.95


def test_three_times_the_errors_are_caught_at_little_cost() -> None:
    traffic = Traffic(candidate_error=0.015)
    ended = simulate(CANARY_ONLY, traffic, runs=300, seed=12)
    wald = Wald("Wald", 0.005, 0.015, PLAN.alpha, 0.01)
    (needed,) = simulate_rules([wald], CANARY_ONLY, traffic, runs=300, seed=12)
    assert ended.share(ROLLED_BACK).share >= 0.99
    exposed, least = ended.median_exposed(ROLLED_BACK), needed.median_exposed(ROLLED_BACK)
    assert exposed is not None
    assert least is not None
    # 1.45 with ten thousand runs; the medians of four hundred differ by a tenth.
    assert exposed < 1.65 * least
    in_shadow = simulate(PLAN, traffic, runs=200, seed=12)
    assert in_shadow.share(ROLLED_BACK).share >= 0.99
    assert in_shadow.median_exposed(ROLLED_BACK) == 0.0


def test_twenty_times_the_errors_are_caught_within_forty_requests() -> None:
    ended = simulate(CANARY_ONLY, Traffic(candidate_error=0.1), runs=400, seed=13)
    assert ended.share(ROLLED_BACK).share == 1.0
    exposed = ended.median_exposed(ROLLED_BACK)
    assert exposed is not None
    assert exposed <= 40.0


def test_a_version_beyond_the_margin_is_seldom_promoted() -> None:
    traffic = Traffic(candidate_error=0.0075, candidate_slow=0.015, incidents_per_hour=1.0)
    ended = simulate(QUICK, traffic, runs=300, seed=14, tick_s=2.0)
    assert bdtrc(int((ended.ended == PROMOTED).sum()) - 1, 300, PLAN.alpha_promote) > 1e-5


def test_a_slower_version_is_caught() -> None:
    ended = simulate(QUICK, Traffic(candidate_slow=0.05), runs=200, seed=15)
    assert ended.share(ROLLED_BACK).share >= 0.99


def test_a_version_that_answers_otherwise_never_reaches_a_caller() -> None:
    ended = simulate(PLAN, Traffic(agreement=0.5), runs=200, seed=16)
    assert ended.share(ROLLED_BACK).share == 1.0
    assert ended.exposed.max() == 0.0


def test_evidence_that_cannot_suffice_is_undecided() -> None:
    ended = simulate(QUICK, Traffic(rps=1.0), runs=50, seed=17, tick_s=5.0)
    assert ended.share(UNDECIDED).share > 0.9


def test_a_rule_that_has_not_decided_by_the_end_of_the_plan_is_undecided() -> None:
    wald, flagger = Wald("Wald", 0.005, 0.015, 0.01, 0.01), Threshold("rule", 60.0, 0.99, 10)
    found = simulate_rules([wald, flagger], QUICK, Traffic(rps=0.1), runs=20, seed=22)
    assert [each.share(UNDECIDED).share for each in found] == [1.0, 0.0]
    assert found[1].share(PROMOTED).share == 1.0, "it has had its steps"


def test_looking_only_when_due_is_looking_always(monkeypatch: pytest.MonkeyPatch) -> None:
    traffic = Traffic(candidate_error=0.02)
    seldom = simulate(QUICK, traffic, runs=60, seed=18)

    def always(plan: Plan, state: State, outcome: Outcome) -> float:
        return 0.0

    monkeypatch.setattr(simulation, "next_look", always)
    ever = simulate(QUICK, traffic, runs=60, seed=18)
    assert (seldom.ended == ever.ended).all()
    np.testing.assert_array_equal(seldom.after_s, ever.after_s)
    np.testing.assert_array_equal(seldom.exposed, ever.exposed)


def test_the_same_seed_gives_the_same_runs() -> None:
    first, second = (simulate(QUICK, Traffic(candidate_error=0.05), runs=30, seed=19) for _ in range(2))
    np.testing.assert_array_equal(first.after_s, second.after_s)
    assert (first.after_s != simulate(QUICK, Traffic(candidate_error=0.05), runs=30, seed=20).after_s).any()


def test_a_threshold_counts_its_strikes() -> None:
    rule = Threshold("rule", 2.0, 0.9, 2)
    rule.start(1)
    n, ended = np.array([10.0]), []
    for now, bad in enumerate([0, 3, 0, 0, 1, 2], start=1):
        ended.append(bool(rule.look(n, np.array([float(bad)]), float(now))[0]))
    assert ended == [False, False, False, False, False, True]


def test_proportions_carry_exact_limits() -> None:
    nothing, some = Proportion.of(0, 1000), Proportion.of(5, 100)
    assert nothing.lower == 0.0
    assert nothing.upper == pytest.approx(1 - 0.025 ** (1 / 1000))
    assert some.lower == pytest.approx(0.01643, abs=1e-4)
    assert some.upper == pytest.approx(0.11283, abs=1e-4)


def test_the_report_compares_every_rule_on_every_version() -> None:
    report = compare(QUICK, Traffic(candidate_error=0.05), runs=20, seed=21)
    assert list(dict.fromkeys(row.version for row in report.rows)) == [GOOD, MARGIN, GIVEN]
    assert len(report.rows) == 12
    given = [row for row in report.rows if row.version == GIVEN]
    assert given[0].rule == "this plan"
    assert given[0].rolled_back.share == 1.0


def test_a_plan_that_waits_for_feedback_is_not_simulated_as_if_it_never_decided() -> None:
    plan = Plan.model_validate({"criteria": {"accuracy": {"required": True}}})
    with pytest.raises(InvalidInput, match="waits for feedback"):
        compare(plan, Traffic(), runs=10, seed=0)


@pytest.mark.parametrize("values", [{"rps": 0.0}, {"stable_error": 1.5}, {"incident_s": -1.0}])
def test_traffic_that_cannot_be_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(InvalidInput):
        Traffic(**values)  # type: ignore[arg-type]

"""The tests' promises, held exactly: expectations over every possible outcome, not samples."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.rollout import evidence
from serving.rollout.evidence import RiskMixture

ROUNDING = 1e-9

arm_sizes = st.integers(1, 12)


def hypergeometric(candidate_n: int, stable_n: int, bad: int) -> dict[int, float]:
    """How many of the bad requests are the candidate's, if the arms are alike."""
    total = math.comb(candidate_n + stable_n, bad)
    return {
        c: math.comb(candidate_n, c) * math.comb(stable_n, bad - c) / total
        for c in range(max(0, bad - stable_n), min(candidate_n, bad) + 1)
    }


def wealth(mixture: RiskMixture, intervals: list[tuple[int, int, int, int]], most: float = math.inf) -> float:
    log_wealth = mixture.log_start
    for candidate_bad, stable_bad, candidate_n, stable_n in intervals:
        ratios = evidence.two_arm_ratios(mixture, candidate_bad, stable_bad, candidate_n, stable_n, most)
        log_wealth = evidence.two_arm_update(mixture, log_wealth, ratios)
    return math.exp(float(evidence.log_sum_exp(log_wealth)))


@given(arm_sizes, arm_sizes, st.data())
def test_rollback_wealth_does_not_grow_on_average_while_the_arms_are_alike(
    candidate_n: int, stable_n: int, data: st.DataObject
) -> None:
    bad = data.draw(st.integers(0, candidate_n + stable_n))
    most = data.draw(st.sampled_from([1.0, 2.5, math.inf]))
    mixture = evidence.worse_than_stable()
    expected = sum(
        probability * wealth(mixture, [(c, bad - c, candidate_n, stable_n)], most)
        for c, probability in hypergeometric(candidate_n, stable_n, bad).items()
    )
    assert expected <= 1.0 + ROUNDING
    if bad == 1:
        assert expected == pytest.approx(1.0)


def test_rollback_wealth_over_every_course_of_four_intervals_with_changing_weights() -> None:
    mixture = evidence.worse_than_stable()
    intervals = [(1, 9, 2), (3, 7, 1), (5, 5, 3), (2, 20, 2)]
    courses = itertools.product(*(hypergeometric(*interval).items() for interval in intervals))
    expected = sum(
        math.prod(probability for _, probability in course)
        * wealth(
            mixture,
            [(c, bad - c, n_c, n_s) for (c, _), (n_c, n_s, bad) in zip(course, intervals, strict=True)],
        )
        for course in courses
    )
    assert 0.5 < expected <= 1.0 + ROUNDING


@given(arm_sizes, arm_sizes, st.sampled_from([0.1, 0.5, 2.0]), st.floats(1.0, 4.0))
def test_promotion_wealth_does_not_grow_on_average_while_the_candidate_is_worse_than_the_margin(
    candidate_n: int, stable_n: int, margin: float, beyond: float
) -> None:
    mixture = evidence.within_margin(margin)
    share = candidate_n * (1.0 + margin) * beyond
    belongs = share / (share + stable_n)
    expected = belongs * wealth(mixture, [(1, 0, candidate_n, stable_n)])
    expected += (1.0 - belongs) * wealth(mixture, [(0, 1, candidate_n, stable_n)])
    assert expected <= 1.0 + ROUNDING
    if beyond == 1.0:
        assert expected == pytest.approx(1.0)


def test_an_interval_that_only_one_arm_answered_says_nothing() -> None:
    mixture = evidence.worse_than_stable()
    assert wealth(mixture, [(5, 0, 10, 0)]) == pytest.approx(1.0)
    assert wealth(mixture, [(0, 5, 0, 10)]) == pytest.approx(1.0)


def test_a_margin_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        evidence.within_margin(0.0)


def test_a_version_that_turns_bad_late_is_found_nearly_as_soon() -> None:
    mixture = evidence.worse_than_stable()
    good_hours = [(1, 1, 50, 50)] * 1000
    turned = [(1, 0, 50, 50)] * 40
    assert wealth(mixture, good_hours) < 0.2
    assert wealth(mixture, good_hours + turned) > 1000.0


def test_pairs_are_the_two_arm_test_with_equal_arms() -> None:
    mixture = evidence.worse_than_stable()
    ratios = evidence.mcnemar_ratios(mixture, 3, 1, 40)
    theta = mixture.ratios / (1.0 + mixture.ratios)
    by_hand = 3 * np.log(theta / 0.5) + np.log((1.0 - theta) / 0.5)
    np.testing.assert_allclose(ratios, by_hand)


def test_an_incident_counts_for_no_more_than_the_events_it_may() -> None:
    mixture = evidence.worse_than_stable()
    incident = evidence.two_arm_ratios(mixture, 100, 300, 250, 750, 2.0)
    two_events = evidence.two_arm_ratios(mixture, 0.5, 1.5, 250, 750)
    np.testing.assert_allclose(incident, two_events)


@pytest.mark.parametrize("rate", [0.001, 0.05, 0.3])
@pytest.mark.parametrize("n", [1, 7])
def test_rate_tests_are_fair_at_their_limit_and_beyond_it(rate: float, n: int) -> None:
    def expectation(log_e: list[float], true: float = rate) -> float:
        return sum(
            math.comb(n, bad) * true**bad * (1 - true) ** (n - bad) * math.exp(value)
            for bad, value in enumerate(log_e)
        )

    below = [float(evidence.log_rate_below(bad, n, rate)) for bad in range(n + 1)]
    assert expectation(below) == pytest.approx(1.0)
    assert expectation(below, 2 * rate) < 1.0
    alarm = [float(evidence.log_rate_alarm(np.zeros(()), bad, n, rate)) for bad in range(n + 1)]
    assert expectation(alarm) == pytest.approx(1.0)
    assert expectation(alarm, rate / 2) < 1.0


@pytest.mark.parametrize(("rate", "bad"), [(0.25, 40), (0.5, 45)])
def test_the_alarm_forgets_good_service(rate: float, bad: int) -> None:
    log_alarm = np.zeros(())
    for _ in range(1000):
        log_alarm = evidence.log_rate_alarm(log_alarm, 0, 50, rate)
    for _ in range(2):
        log_alarm = evidence.log_rate_alarm(log_alarm, bad, 50, rate)
    assert log_alarm > math.log(1e6)


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.floats(0.05, 0.95))
def test_betting_wealth_is_the_product_of_its_bets(sequence: list[bool], mean: float) -> None:
    capital, successes = 1.0, 0
    for index, success in enumerate(sequence):
        forecast = (successes + 0.5) / (index + 1)
        bet = (forecast - mean) / (mean * (1.0 - mean))
        capital *= 1.0 + bet * (success - mean)
        successes += success
    assert float(evidence.log_betting_wealth(successes, len(sequence), mean)) == pytest.approx(
        math.log(capital)
    )


@given(st.integers(0, 200), st.integers(0, 200), st.sampled_from([0.5, 0.05, 1e-4]))
def test_confidence_sequence_holds_the_share_and_agrees_with_the_one_sided_question(
    successes: int, failures: int, alpha: float
) -> None:
    n = successes + failures
    lower, upper = evidence.confidence_sequence(successes, n, alpha)
    assert 0.0 <= lower <= upper <= 1.0
    if n == 0:
        assert lower == 0.0
        assert upper == 1.0
    else:
        assert lower <= successes / n <= upper
    for mean in (0.1, 0.5, 0.9):
        if abs(mean - upper) > 1e-9:
            assert bool(evidence.mean_is_below(successes, n, mean, alpha)) == (upper < mean)


def test_confidence_sequence_covers_at_all_times() -> None:
    random = np.random.default_rng(7)
    mean, alpha, runs = 0.9, 0.1, 2000
    successes = (random.random((runs, 400)) < mean).cumsum(axis=1)
    n = np.arange(1, 401)
    missed = (evidence.log_betting_wealth(successes, n, mean) >= -math.log(alpha)).any(axis=1)
    # 200 are allowed in expectation at most; 260 are four and a half standard deviations above.
    assert 0 < missed.sum() < 260


def test_split_test_is_fair_and_finds_a_broken_router() -> None:
    shares, n = (0.2, 0.3, 0.5), 5
    expected = 0.0
    for counts in itertools.product(range(n + 1), repeat=3):
        if sum(counts) == n:
            ways = math.factorial(n) / math.prod(map(math.factorial, counts))
            probability = ways * math.prod(share**x for share, x in zip(shares, counts, strict=True))
            expected += probability * math.exp(float(evidence.log_split(counts, shares)))
    assert expected == pytest.approx(1.0)
    assert evidence.log_split((50, 950), (0.05, 0.95)) < 0.0
    assert evidence.log_split((150, 850), (0.05, 0.95)) > math.log(1e6)
    assert evidence.log_split((1, 100), (0.0, 1.0)) == math.inf

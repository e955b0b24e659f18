"""The evidence of rollouts is kept between their moves, and does not grow without end."""

from __future__ import annotations

import itertools
from dataclasses import replace

from serving.page.curves import MOST_POINTS, Curves
from serving.rollout import ledger as ledgers
from serving.rollout.plan import Plan
from serving.rollout.record import Rollout

ROLLOUT = Rollout("digits-2", "digits", 1, 2, Plan(), 0.0)


def at(clock_s: float) -> Rollout:
    """The rollout as it is at a moment of its own clock."""
    return replace(ROLLOUT, clock_s=clock_s, ledger=ledgers.empty(ledgers.tests_of(ROLLOUT.plan)))


def test_points_between_moves_are_kept_in_order_and_once() -> None:
    curves = Curves(list)
    for second in (0, 2, 2, 4):
        curves.see([at(second)])
    assert [clock_s for clock_s, _ in curves.of(at(5.0))] == [0, 2, 4, 5.0]
    assert [clock_s for clock_s, _ in curves.of(at(4.0))] == [0, 2, 4]


def test_a_long_curve_is_thinned_evenly_and_stays_whole() -> None:
    curves = Curves(list)
    for second in range(0, 4_000, 2):
        curves.see([at(second)])
    points = [clock_s for clock_s, _ in curves.of(at(4_000))]
    assert MOST_POINTS / 3 < len(points) <= MOST_POINTS + 2
    assert (points[0], points[-1]) == (0, 4_000)
    gaps = [later - earlier for earlier, later in itertools.pairwise(points)]
    assert max(gaps) <= 4 * min(gaps[:-1])


def test_a_rollout_that_is_over_and_followed_by_another_is_forgotten() -> None:
    curves = Curves(list)
    curves.see([at(1.0)])
    curves.see([replace(at(3.0), id="digits-3")])
    assert [clock_s for clock_s, _ in curves.of(at(9.0))] == [9.0]

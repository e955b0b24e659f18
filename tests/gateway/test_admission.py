"""Who gets how much of what there is, and how often one may ask: pure."""

from __future__ import annotations

import random
from collections import Counter, deque

import pytest

from serving.access.rates import SlidingWindow
from serving.access.shares import Shares


def test_one_who_is_alone_gets_all_but_what_is_kept_and_the_next_one_finds_that() -> None:
    shares = Shares()
    while shares.fits("flood", 1, limit=70, reserve=10):
        shares.take("flood")
    assert shares.total == 70
    while shares.fits("calm", 1, limit=70, reserve=10):
        shares.take("calm")
    assert (shares.held("calm"), shares.total) == (10, 80)
    shares.give_back("flood")
    assert not shares.fits("flood", 1, limit=70, reserve=10)
    assert shares.fits("calm", 1, limit=70, reserve=10)
    assert shares.fits("third", 1, limit=70, reserve=10)


def test_an_amount_is_held_against_the_equal_share_as_a_whole() -> None:
    shares = Shares()
    shares.take("flood", 1000)
    assert not shares.fits("calm", 501, limit=1000, reserve=1000)
    assert shares.fits("calm", 500, limit=1000, reserve=1000)
    shares.give_back("flood", 1000)
    assert (shares.total, shares.held("flood")) == (0, 0)
    assert shares.fits("calm", 1000, limit=1000)


def test_who_took_nothing_has_no_share() -> None:
    shares = Shares()
    shares.take("flood", 1000)
    for caller in range(10):
        shares.take(f"empty body {caller}", 0)
    assert shares.fits("calm", 500, limit=1000, reserve=1000)


def test_shares_become_equal_among_those_who_want_more_and_nothing_stays_unused() -> None:
    """Two ask without end and one a little, at a server of which each second ten places come free."""
    shares, held = Shares(), deque[str]()
    rng = random.Random(5)
    most = 0
    for second in range(200):
        asking = ["a"] * 400 + (["b"] * 100 if second >= 50 else []) + ["c"] * 2
        rng.shuffle(asking)
        for caller in asking:
            if shares.fits(caller, 1, limit=60, reserve=60):
                shares.take(caller)
                held.append(caller)
        most = max(most, shares.total)
        assert shares.total >= 60
        for _ in range(10):
            shares.give_back(held.popleft())
    counts = Counter(held)
    assert counts["c"] >= 2
    assert abs(counts["a"] - counts["b"]) <= 12, counts
    assert most <= 120


def test_a_rate_holds_in_every_window_and_says_when_to_come_back() -> None:
    window, now, taken = SlidingWindow(5, 10.0), 3.0, deque[float]()
    rng = random.Random(2)
    for _ in range(2000):
        now += rng.expovariate(2.0)
        wait_s = window.take(now)
        if wait_s == 0.0:
            taken.append(now)
        else:
            assert 0.0 < wait_s <= 20.0
            assert window.take(now + 0.99 * wait_s - 1e-6) > 0.0
            now += wait_s + 1e-6
            assert window.take(now) == 0.0, "it was told to come back now"
            taken.append(now)
    assert len(taken) / (now / 10.0) == pytest.approx(5, rel=0.1)
    most = max(sum(1 for each in taken if start <= each < start + 10.0) for start in taken)
    assert most <= 2 * 5, "a count of two windows is never off by more than one of them"


def test_the_window_before_counts_for_as_much_of_it_as_is_still_seen() -> None:
    window = SlidingWindow(10, 10.0)

    def taken(now: float) -> int:
        return sum(window.take(now) == 0.0 for _ in range(20))

    assert taken(9.0) == 10
    assert taken(12.5) == 3, "of the ten before three quarters are seen still"
    assert window.take(12.5) == pytest.approx(0.5)
    assert taken(35.0) == 10, "a window lies between"


def test_a_caller_who_was_away_begins_anew() -> None:
    window = SlidingWindow(2, 60.0)
    assert [window.take(1000.0) for _ in range(2)] == [0.0, 0.0]
    assert window.take(1000.0) > 0.0
    assert [window.take(1e9) for _ in range(2)] == [0.0, 0.0]

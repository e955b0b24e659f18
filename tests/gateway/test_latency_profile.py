"""What is learned of latencies, and what is concluded from it."""

from __future__ import annotations

import numpy as np
import pytest

from serving.latency_profile import HALF_LIFE_S, LEAST_PATIENCE_S, LatencyProfile, least_wait_s
from serving.scores import padded


def learned(latencies: dict[int, float], now: float = 0.0) -> LatencyProfile:
    found = LatencyProfile()
    for size, latency_s in latencies.items():
        for _ in range(100):
            found.learn(size, latency_s, now)
    return found


def test_larger_batches_are_not_taken_for_faster_than_smaller_ones() -> None:
    found = learned({1: 0.1, 32: 0.4})
    assert found.least_s(1, 0.0) == pytest.approx(0.1, rel=0.01)
    assert found.least_s(16, 0.0) == pytest.approx(0.1, rel=0.01)
    assert found.least_s(32, 0.0) == pytest.approx(0.4, rel=0.01)
    assert learned({32: 0.4}).least_s(1, 0.0) == 0.0


def test_an_estimate_fades_unless_it_is_confirmed() -> None:
    found = learned({1: 0.1})
    assert found.least_s(1, HALF_LIFE_S) == pytest.approx(0.05, rel=0.01)


def test_few_calls_say_nothing() -> None:
    found = LatencyProfile()
    found.learn(1, 10.0, 0.0)
    assert found.least_s(1, 0.0) == 0.0
    assert found.patience_s(1) is None


def test_patience_is_a_multiple_of_the_slowest_and_at_least_a_second() -> None:
    assert learned({1: 0.01}).patience_s(1) == LEAST_PATIENCE_S
    patience_s = learned({1: 0.01, 32: 2.0}).patience_s(1)
    assert patience_s == pytest.approx(8.0, rel=0.01)


@pytest.mark.parametrize(
    ("queued", "slots", "wait_s"), [(0, 2, 0.1), (31, 2, 0.1), (64, 2, 0.5), (64, 1, 0.9)]
)
def test_the_wait_is_the_full_batches_ahead_and_the_call_itself(
    queued: int, slots: int, wait_s: float
) -> None:
    found = learned({1: 0.1, 32: 0.4})
    waited = least_wait_s(found, queued=queued, slots=slots, max_batch=32, now=0.0)
    assert waited == pytest.approx(wait_s, rel=0.01)


@pytest.mark.parametrize(
    ("count", "sizes", "size"), [(3, (), 3), (3, (1, 4, 8), 4), (4, (1, 4, 8), 4), (9, (4, 8), 9)]
)
def test_batches_are_filled_up_to_the_sizes_that_are_allowed(
    count: int, sizes: tuple[int, ...], size: int
) -> None:
    images = [np.full((1, 1, 1), value, np.uint8) for value in range(count)]
    found = padded(images, sizes)
    assert len(found) == size
    assert all(mine is given for mine, given in zip(found, images, strict=False))

"""Which classes are counted together, and how far predictions are from the training data."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from serving.telemetry.drift import (
    LEAST_PREDICTIONS,
    MOST_GROUPS,
    OTHER,
    PredictedClasses,
    group_classes,
    stability_index,
)
from serving.telemetry.metrics import Metrics

CARD = {"training": {"class_distribution": [0.5, 0.3, 0.2]}}
LABELS = ("a", "b", "c")


def test_classes_are_grouped_alike_everywhere() -> None:
    labels = tuple(map(str, range(100)))
    shares = [0.0] * 100
    shares[70], shares[30] = 0.6, 0.4
    groups = group_classes(labels, shares)
    assert groups == group_classes(labels, list(shares))
    assert (groups[70], groups[30], groups[99]) == ("70", "30", OTHER)
    assert len(set(groups)) == MOST_GROUPS
    assert group_classes(labels[:20], None) == labels[:20]


def test_a_class_that_is_not_known_of_a_version_is_among_the_others() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.know("m", 1, LABELS, CARD)
    assert [metrics.class_group("m", "1", label) for label in ("a", "z")] == ["a", OTHER]
    assert metrics.class_group("m", "2", "a") == OTHER


def test_a_shift_shows_and_chance_does_not() -> None:
    rng = random.Random(3)
    expected = [0.5, 0.3, 0.2]
    same, shifted = PredictedClasses(LABELS, expected), PredictedClasses(LABELS, expected)
    for _ in range(3000):
        same.add(rng.choices(range(3), expected))
        shifted.add(rng.choices(range(3), [0.1, 0.2, 0.7]))
    assert (same.index() or 0) < 0.02
    assert (shifted.index() or 0) > 0.25
    # By hand: (0.4 - 0.5) ln(0.4 / 0.5) + (0.6 - 0.5) ln(0.6 / 0.5), with half a prediction in each group.
    assert stability_index([0.5, 0.5], [400_000, 600_000]) == pytest.approx(0.040547, abs=1e-4)
    # (0.25 - 0.5) ln(0.25 / 0.5) + (0.75 - 0.5) ln(0.75 / 0.5): half a prediction tells where there are few.
    assert stability_index([0.5, 0.5], [0, 1]) == pytest.approx(0.27465, abs=1e-4)


def test_a_class_that_was_never_trained_on_makes_the_index_large_and_not_infinite() -> None:
    classes = PredictedClasses(LABELS, [0.5, 0.5, 0.0])
    classes.add([0, 1] * 200)
    assert (classes.index() or 0) < 0.02
    classes.add([2] * 100)
    assert 0.25 < (classes.index() or 0) < 5


def test_nothing_is_said_of_too_few_predictions_or_without_a_card() -> None:
    few, blind = PredictedClasses(LABELS, [0.5, 0.3, 0.2]), PredictedClasses(LABELS, None)
    few.add([0] * (LEAST_PREDICTIONS - 1))
    blind.add([0] * 5000)
    assert few.index() is None
    assert blind.index() is None
    few.add([0])
    assert (few.index() or 0) > 0.25
    assert PredictedClasses(LABELS, [1.0]).index() is None
    many = PredictedClasses([str(number) for number in range(20)], [0.05] * 20)
    many.add([*range(20)] * 19)
    assert many.index() is None, "chance alone makes a twentieth of it here"
    many.add(range(20))
    assert many.index() is not None


@given(st.lists(st.integers(0, 500), min_size=2, max_size=25))
def test_the_index_is_never_negative(counts: list[int]) -> None:
    expected = [1 / len(counts)] * len(counts)
    assert stability_index(expected, counts) >= 0


def test_the_index_forgets() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.predicted("m", 1, LABELS, CARD, [2] * 3000)
    assert metrics.drift()["m", "1"] > 0.25
    for _ in range(300):
        metrics.predicted("m", 1, LABELS, CARD, [0, 0, 0, 0, 0, 1, 1, 1, 2, 2])
    assert metrics.drift()["m", "1"] < 0.02

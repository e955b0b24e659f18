from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import bdtr, bdtrc

from serving.routing import Route, Split, choose, unit_hash

KEYS = [f"caller-{index}" for index in range(10_000)]

shares = st.floats(0.0, 1.0)


@given(st.text(), st.text(), shares, shares)
def test_a_key_never_leaves_the_candidate_while_the_weight_grows(
    salt: str, key: str, a: float, b: float
) -> None:
    small, large = sorted((a, b))
    if choose(Split(1, 2, small, salt=salt), key).arm == "candidate":
        assert choose(Split(1, 2, large, salt=salt), key) == Route(2, "candidate", None)


def test_steps_of_a_rollout_only_add_callers_and_keep_to_their_shares() -> None:
    before: set[str] = set()
    for weight in (0.01, 0.05, 0.25, 0.5, 1.0):
        split = Split(1, 2, weight, salt="rollout")
        now = {key for key in KEYS if choose(split, key).arm == "candidate"}
        assert before <= now
        assert bdtr(len(now), len(KEYS), weight) > 0.0005
        assert bdtrc(len(now) - 1, len(KEYS), weight) > 0.0005
        before = now
    assert len(before) == len(KEYS)


def test_another_rollout_begins_with_other_callers() -> None:
    first = {key for key in KEYS if choose(Split(1, 2, 0.05, salt="a"), key).arm == "candidate"}
    second = {key for key in KEYS if choose(Split(1, 2, 0.05, salt="b"), key).arm == "candidate"}
    # 25 are in both by chance.
    assert len(first & second) < 60


def test_copies_are_independent_of_the_arm_and_only_of_stable_requests() -> None:
    split = Split(1, 2, weight=0.5, shadow=0.2, salt="rollout")
    routes = [choose(split, key) for key in KEYS]
    assert all(route.shadow is None for route in routes if route.arm == "candidate")
    stable = [route for route in routes if route.arm == "stable"]
    copied = sum(route.shadow == 2 for route in stable)
    assert abs(copied - 0.2 * len(stable)) < 5 * np.sqrt(len(stable) * 0.2 * 0.8)


def test_without_a_candidate_everything_is_stable() -> None:
    assert {choose(Split(7), key) for key in KEYS[:100]} == {Route(7, "stable", None)}


def test_the_hash_is_the_same_everywhere() -> None:
    # Gateways of different builds must agree: these values may never change.
    assert unit_hash("salt", "key", "arm") == pytest.approx(0.08201629, abs=1e-8)
    assert unit_hash("salt", "key", "shadow") == pytest.approx(0.81473424, abs=1e-8)


def test_the_hash_tells_salts_and_keys_apart() -> None:
    assert unit_hash("ab", "c", "arm") != unit_hash("a", "bc", "arm")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": 1.5, "candidate": 2}, "weight is 1.5"),
        ({"shadow": -0.1, "candidate": 2}, "shadow is -0.1"),
        ({"weight": 0.1}, "no candidate"),
    ],
)
def test_a_split_that_cannot_be_is_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Split(1, **arguments)  # type: ignore[arg-type]

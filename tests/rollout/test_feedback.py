from __future__ import annotations

import base64
from pathlib import Path

import pytest

from serving.errors import FailedPrecondition, InvalidInput
from serving.rollout.feedback import TTL_S, Receipts, shared_key
from serving.rollout.steering import Steering
from serving.routing import Split

KEY = b"k" * 32


class Wall:
    """A clock that tests set."""

    now = 1e9

    def __call__(self) -> float:
        return self.now


def desk() -> tuple[Receipts, Steering, Wall]:
    steering, wall = Steering(), Wall()
    steering.set_split("digits", Split(1, 2, 0.5, salt="x"), None)
    return Receipts(KEY, steering, wall), steering, wall


def test_feedback_on_a_routed_prediction_is_counted_once() -> None:
    receipts, steering, _ = desk()
    right = receipts.issue("digits", 2, "seven", routed=True)
    wrong = receipts.issue("digits", 2, "seven", routed=True)
    assert receipts.redeem(right, "seven") == "accepted"
    assert receipts.redeem(wrong, "one") == "accepted"
    assert receipts.redeem(wrong, "one") == "duplicate"
    assert steering.counts("digits") == {"labelled/2": 2.0, "wrong/2": 1.0}


def test_feedback_on_a_version_that_the_caller_named_is_no_evidence() -> None:
    receipts, steering, _ = desk()
    assert receipts.redeem(receipts.issue("digits", 2, "a\nb|c", routed=False), "other") == "accepted"
    assert steering.counts("digits") == {}


def test_ids_that_were_changed_or_made_up_are_refused() -> None:
    receipts, steering, _ = desk()
    genuine = receipts.issue("digits", 2, "seven", routed=True)
    payload, signature = genuine.split(".")
    other = base64.urlsafe_b64encode(base64.urlsafe_b64decode(payload + "==").replace(b"seven", b"eight"))
    forged = Receipts(b"another key" * 3, steering).issue("digits", 2, "seven", routed=True)
    for bad in ("", ".", "abc", genuine[:-3], f"{other.decode()}.{signature}", forged, genuine * 50, "ä.ö"):
        with pytest.raises(InvalidInput, match="no prediction id of this service"):
            receipts.redeem(bad, "seven")
    with pytest.raises(InvalidInput, match="the label is empty"):
        receipts.redeem(genuine, "")
    assert steering.counts("digits") == {}


def test_ids_expire() -> None:
    receipts, _, wall = desk()
    id_ = receipts.issue("digits", 2, "seven", routed=True)
    wall.now += TTL_S + 86400
    with pytest.raises(FailedPrecondition, match="the prediction is 8 days old"):
        receipts.redeem(id_, "seven")


def test_gateways_share_one_key(tmp_path: Path) -> None:
    first, second = shared_key(tmp_path), shared_key(tmp_path)
    assert first == second
    assert len(first) == 32
    assert (tmp_path / "feedback.key").stat().st_mode & 0o077 == 0

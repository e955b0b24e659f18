from __future__ import annotations

import asyncio
import base64
from functools import partial
from pathlib import Path

import pytest

from serving.errors import FailedPrecondition, InvalidInput, Unavailable
from serving.rollout.feedback import TTL_S, Receipts, shared_key
from serving.rollout.memory import FolderMemory, Memory, Named, OwnMemory
from serving.rollout.steering import Steering
from serving.routing import Split

KEY = b"k" * 32


class Wall:
    """A clock that tests set."""

    now = 1e9

    def __call__(self) -> float:
        return self.now


def desk(memory: Memory | None = None) -> tuple[Receipts, Steering, Wall]:
    steering, wall = Steering(), Wall()
    steering.set_split("digits", Split(1, 2, 0.5, salt="x"), None)
    return Receipts(KEY, steering, memory or OwnMemory(), wall), steering, wall


async def test_feedback_on_a_routed_prediction_is_counted_once() -> None:
    receipts, steering, _ = desk()
    right = receipts.issue("digits", 2, "seven", routed=True)
    wrong = receipts.issue("digits", 2, "seven", routed=True)
    assert await receipts.redeem(right, "seven") == "accepted"
    assert await receipts.redeem(wrong, "one") == "accepted"
    assert await receipts.redeem(wrong, "one") == "duplicate"
    assert steering.counts("digits") == {"labelled/2": 2.0, "wrong/2": 1.0}
    third = receipts.issue("digits", 1, "seven", routed=True)
    assert await receipts.redeem_all([(third, "one"), (third, "one")]) == ["accepted", "duplicate"]


async def test_feedback_is_evidence_on_answers_that_were_given_while_callers_were_divided() -> None:
    receipts, steering, wall = desk()
    issue = partial(receipts.issue, "digits", label="seven", routed=True)
    before = [issue(version) for version in (1, 2)]
    wall.now += 60.0
    divided = [(wall.now + 0.9, 0.01)]
    steering.set_split("digits", Split(1, 2, 0.01, salt="y"), None, divided)
    since = [issue(version) for version in (1, 2)]
    wall.now += 60.0
    steering.set_split("digits", Split(1, 2, 0.5, salt="y"), None, [*divided, (wall.now + 0.9, 0.5)])
    later = issue(2)
    for id_ in (*before, *since, later):
        assert await receipts.redeem(id_, "one") == "accepted"
    assert steering.counts("digits") == {
        **{f"{kind}/1": 2.0 for kind in ("labelled", "wrong")},
        **{f"{kind}/2": 3.0 for kind in ("labelled", "wrong")},
        **{f"{kind}/{version}/0.01": 1.0 for kind in ("judged", "judged-wrong") for version in (1, 2)},
        **{f"{kind}/2/0.5": 1.0 for kind in ("judged", "judged-wrong")},
    }


async def test_pairs_against_a_version_that_is_not_the_present_stable_one_are_no_evidence() -> None:
    receipts, steering, _ = desk(memory := OwnMemory())
    memory.note("copy", Named(3, ("seven",)))
    id_ = receipts.issue("digits", 1, "seven", routed=True, copied="copy-0")
    steering.set_split("digits", Split(2, 3, 0.5, salt="x"), None)
    assert await receipts.redeem(id_, "one") == "accepted"
    counted = steering.counts("digits")
    assert counted == {f"{kind}/{version}": 1.0 for kind in ("labelled", "wrong") for version in (1, 3)}


async def test_an_image_of_a_copy_that_the_candidate_did_not_name_judges_stable_alone() -> None:
    receipts, steering, _ = desk(memory := OwnMemory())
    memory.note("copy", Named(2, ("seven",)))
    id_ = receipts.issue("digits", 1, "seven", routed=True, copied="copy-1")
    assert await receipts.redeem(id_, "one") == "accepted"
    assert steering.counts("digits") == {"labelled/1": 1.0, "wrong/1": 1.0}


async def test_feedback_on_a_version_that_the_caller_named_is_no_evidence() -> None:
    receipts, steering, _ = desk()
    id_ = receipts.issue("digits", 2, "a\nb|c", routed=False)
    assert await receipts.redeem(id_, "other") == "accepted"
    assert steering.counts("digits") == {}


async def test_ids_that_were_changed_or_made_up_are_refused() -> None:
    receipts, steering, _ = desk()
    genuine = receipts.issue("digits", 2, "seven", routed=True)
    payload, signature = genuine.split(".")
    assert len(base64.urlsafe_b64decode(signature + "==")) == 16
    other = base64.urlsafe_b64encode(base64.urlsafe_b64decode(payload + "==").replace(b"seven", b"eight"))
    stranger = Receipts(b"another key" * 3, steering, OwnMemory())
    forged = stranger.issue("digits", 2, "seven", routed=True)
    for bad in ("", ".", "abc", genuine[:-3], f"{other.decode()}.{signature}", forged, genuine * 50, "ä.ö"):
        with pytest.raises(InvalidInput, match="not a prediction id of this service"):
            await receipts.redeem(bad, "seven")
    for label in ("", "x" * 1001):
        with pytest.raises(InvalidInput, match="the label is empty or too long"):
            await receipts.redeem(genuine, label)
    assert steering.counts("digits") == {}


async def test_ids_expire() -> None:
    receipts, _, wall = desk()
    id_ = receipts.issue("digits", 2, "seven", routed=True)
    wall.now += TTL_S
    assert receipts.read(id_).label == "seven"
    wall.now += 1
    with pytest.raises(FailedPrecondition, match="the prediction is 7 days old; feedback is accepted for 7"):
        await receipts.redeem(id_, "seven")
    wall.now += 86400
    with pytest.raises(FailedPrecondition, match="the prediction is 8 days old"):
        await receipts.redeem(id_, "seven")


async def test_an_id_counts_once_whichever_gateway_it_comes_to_and_after_a_restart(tmp_path: Path) -> None:
    (first, steering, _), (second, other, _) = (desk(FolderMemory(tmp_path, TTL_S)) for _ in range(2))
    id_ = first.issue("digits", 2, "seven", routed=True)
    assert await second.redeem(id_, "one") == "accepted"
    assert await first.redeem(id_, "one") == "duplicate"
    restarted, _, _ = desk(FolderMemory(tmp_path, TTL_S))
    assert await restarted.redeem(id_, "one") == "duplicate"
    assert (steering.counts("digits"), other.counts("digits")) == ({}, {"labelled/2": 1.0, "wrong/2": 1.0})


async def test_many_at_once_at_two_gateways_count_once_each(tmp_path: Path) -> None:
    (first, one, _), (second, two, _) = (desk(FolderMemory(tmp_path, TTL_S)) for _ in range(2))
    told = [(first.issue("digits", 2, "seven", routed=True), "seven") for _ in range(200)]
    parts = [told[start : start + 20] for start in range(0, 200, 20)]
    answers = await asyncio.gather(*(each.redeem_all(part) for each in (first, second) for part in parts))
    assert [status for answer in answers for status in answer].count("accepted") == 200
    assert one.counts("digits").get("labelled/2", 0) + two.counts("digits").get("labelled/2", 0) == 200


@pytest.mark.parametrize("shared", [False, True])
async def test_feedback_on_an_image_that_both_versions_named_judges_both(
    tmp_path: Path, shared: bool
) -> None:
    made_by, told_by = (FolderMemory(tmp_path, TTL_S) for _ in range(2))
    issuer, _, _ = desk(made_by)
    receipts, steering, _ = desk(told_by if shared else made_by)
    truth = ("one", "seven", "seven", "two")
    ids = [issuer.issue("digits", 1, "seven", routed=True, copied=f"copy-{place}") for place in range(4)]
    made_by.note("copy", Named(2, ("one", "seven", "two", "one")))
    made_by.share()
    unanswered = issuer.issue("digits", 1, "seven", routed=True, copied="other-0")
    told = [*zip(ids, truth, strict=True), (unanswered, "seven")]
    assert set(await receipts.redeem_all(told)) == {"accepted"}
    assert steering.counts("digits") == {
        "labelled/1": 5.0,
        "wrong/1": 2.0,
        "labelled/2": 4.0,
        "wrong/2": 2.0,
        "pairs/2": 4.0,
        "stable-wrong/2": 1.0,
        "candidate-wrong/2": 1.0,
        "both-wrong/2": 1.0,
    }


async def test_a_damaged_memory_refuses_feedback_until_it_is_removed(tmp_path: Path) -> None:
    receipts, steering, _ = desk(FolderMemory(tmp_path, TTL_S))
    id_ = receipts.issue("digits", 2, "seven", routed=True)
    assert await receipts.redeem(id_, "one") == "accepted"
    path = tmp_path / "feedback.sqlite"
    path.write_bytes(b"no database" * 100)
    fresh = receipts.issue("digits", 2, "seven", routed=True)
    with pytest.raises(Unavailable, match="cannot be read or written"):
        await receipts.redeem(fresh, "one")
    path.unlink()
    assert await receipts.redeem(fresh, "one") == "accepted"
    assert steering.counts("digits")["labelled/2"] == 2.0


def test_gateways_share_one_key(tmp_path: Path) -> None:
    first, second = shared_key(tmp_path), shared_key(tmp_path)
    assert first == second
    assert len(first) == 32
    assert [path.name for path in tmp_path.iterdir()] == ["feedback.key"]
    assert (tmp_path / "feedback.key").stat().st_mode & 0o077 == 0

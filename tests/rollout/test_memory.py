"""What is remembered of feedback: for how long, how much of it, and what other gateways are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.errors import Unavailable
from serving.rollout import memory as memories
from serving.rollout.feedback import TTL_S
from serving.rollout.memory import FolderMemory, Named, OwnMemory

SEVEN = Named(2, ("seven",))


class Wall:
    """A clock that tests set."""

    now = 1e9

    def __call__(self) -> float:
        return self.now


def test_one_process_forgets_the_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memories, "_MOST", 2)
    memory = OwnMemory()
    assert memory.take([b"a", b"b", b"c"]) == [True] * 3
    assert memory.take([b"b", b"c", b"a"]) == [False, False, True]
    for copy in ("a", "b", "c"):
        memory.note(copy, SEVEN)
    assert [memory.named(copy) for copy in ("a", "b", "c")] == [None, SEVEN, SEVEN]


def test_what_cannot_be_told_to_others_is_kept_for_them_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memories, "_MOST", 2)
    mine, other = (FolderMemory(tmp_path, TTL_S) for _ in range(2))
    for copy in ("a", "b", "c"):
        mine.note(copy, SEVEN)
    mine.share()
    assert [other.named(copy) is not None for copy in ("a", "b", "c")] == [True, True, False]


def test_what_could_not_be_told_to_others_is_told_later_and_its_failure_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memories, "_MOST", 3)
    mine, other = (FolderMemory(tmp_path, TTL_S) for _ in range(2))
    path = tmp_path / "feedback.sqlite"
    path.write_bytes(b"no database" * 100)
    mine.note("a", SEVEN)
    for copy in ("b", "c", "d"):
        mine.share()
        mine.note(copy, SEVEN)
    path.unlink()
    mine.share()
    assert [other.named(copy) is not None for copy in ("a", "b", "c", "d")] == [True, True, True, False]
    assert mine.failures == 3
    assert capsys.readouterr().out.count("cannot be shared") == 1
    path.unlink()
    mine.share()
    assert not path.exists(), "they have been told"


def test_others_are_told_once_and_only_if_there_is_something_to_tell(tmp_path: Path) -> None:
    mine, other = (FolderMemory(tmp_path, TTL_S) for _ in range(2))
    path = tmp_path / "feedback.sqlite"
    mine.share()
    assert not path.exists()
    mine.note("a", SEVEN)
    mine.share()
    assert other.named("a") == SEVEN
    path.unlink()
    mine.share()
    assert not path.exists()
    assert mine.named("a") == SEVEN, "it knows what it noted itself"


def test_what_is_told_of_a_copy_later_holds(tmp_path: Path) -> None:
    mine, other = (FolderMemory(tmp_path, TTL_S) for _ in range(2))
    for named in (SEVEN, Named(3, ("one", "two"))):
        mine.note("a", named)
        mine.share()
    assert other.named("a") == Named(3, ("one", "two"))


def test_a_damaged_file_is_counted_and_keeps_nobody_from_looking_at_rollouts(tmp_path: Path) -> None:
    memory = FolderMemory(tmp_path, TTL_S)
    (tmp_path / "feedback.sqlite").write_bytes(b"no database" * 100)
    memory.note("a", SEVEN)
    memory.share()
    assert memory.failures == 1
    with pytest.raises(Unavailable):
        memory.take([b"a"])
    assert memory.failures == 2


def test_what_is_older_than_feedback_is_taken_is_forgotten(tmp_path: Path) -> None:
    wall = Wall()
    memory = FolderMemory(tmp_path, TTL_S, wall, wall)
    assert memory.take([b"a"]) == [True]
    memory.note("a", SEVEN)
    memory.share()
    wall.now += TTL_S + 1.0
    assert memory.take([b"b"]) == [True]
    assert memory.take([b"a", b"b"]) == [True, False]
    assert FolderMemory(tmp_path, TTL_S, wall, wall).named("a") is None


def test_a_clock_that_is_set_back_lets_nothing_be_kept_for_ever(tmp_path: Path) -> None:
    wall, clock = Wall(), Wall()
    memory = FolderMemory(tmp_path, TTL_S, wall, clock)
    wall.now += 3e8
    assert memory.take([b"future"]) == [True]
    wall.now -= 3e8
    clock.now += 7200.0
    assert memory.take([b"a"]) == [True]
    wall.now += TTL_S + 1.0
    clock.now += TTL_S + 1.0
    assert memory.take([b"a", b"future"]) == [True, False]


def test_what_is_old_is_looked_for_once_an_hour(tmp_path: Path) -> None:
    """It takes a look at every id, while other gateways wait."""
    wall, clock = Wall(), Wall()
    memory = FolderMemory(tmp_path, TTL_S, wall, clock)
    assert memory.take([b"a"]) == [True]
    wall.now += TTL_S + 1.0
    assert memory.take([b"a"]) == [False]
    clock.now += 3600.0
    assert memory.take([b"a"]) == [True]

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from serving.errors import Conflict, FailedPrecondition, InvalidInput, NotFound
from serving.rollout.machine import Phase, State
from serving.rollout.plan import Plan
from serving.rollout.published import published_in
from serving.rollout.record import Rollout
from serving.rollout.start import order, start
from serving.rollout.store import Files, FileStore
from tests.rollout.stored import new_rollout, walk


def at(rollout: Rollout, clock_s: float) -> Rollout:
    return replace(rollout, clock_s=clock_s)


def finished(rollout: Rollout) -> Rollout:
    return replace(rollout, state=State(Phase.ROLLED_BACK))


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    assert store.load("digits") is None
    assert store.models() == []
    saved = store.save(walk(new_rollout(), bad_rate=0.01))
    loaded = FileStore(tmp_path).load("digits")
    assert loaded is not None
    assert (loaded.revision, loaded.state, loaded.events[0].after) == (1, saved.state, saved.events[0].after)
    assert store.models() == ["digits"]


def test_only_one_of_two_controllers_saves(tmp_path: Path) -> None:
    first, second = FileStore(tmp_path), FileStore(tmp_path)
    saved = first.save(new_rollout())
    theirs = first.save(at(saved, 1.0))
    with pytest.raises(Conflict, match="is at revision 2, not 1: somebody else moved it"):
        second.save(at(saved, 2.0))
    assert second.load("digits") == theirs


def test_one_model_has_one_rollout_at_once(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    running = store.save(new_rollout("first"))
    with pytest.raises(Conflict, match='model "digits" has a rollout that is pending'):
        store.save(new_rollout("second", started_at=2e9))
    store.save(finished(running))
    store.save(new_rollout("second", started_at=2e9))
    store.save(new_rollout("other", model="flowers"))
    assert [rollout.id for rollout in store.history("digits")] == ["first", "second"]
    assert [rollout.id for rollout in store.history("flowers")] == ["other"]
    assert store.models() == ["digits", "flowers"]


class Stopped(BaseException):
    """The process ends here."""


class FailingFiles(Files):
    """Fails at the n-th operation: by an error, by the end of the process, or by that after half a write."""

    def __init__(self, fail_at: int, how: str) -> None:
        self._left = fail_at
        self._how = how

    def write(self, path: Path, content: bytes) -> None:
        if self._now() and self._how == "half":
            super().write(path, content[: len(content) // 2])
            raise Stopped
        self._fail()
        super().write(path, content)

    def replace(self, source: Path, target: Path) -> None:
        self._now()
        self._fail()
        super().replace(source, target)

    def sync_folder(self, folder: Path) -> None:
        self._now()
        self._fail()
        super().sync_folder(folder)

    def _now(self) -> bool:
        self._left -= 1
        return self._left == 0

    def _fail(self) -> None:
        if self._left == 0:
            raise OSError(28, "No space left on device") if self._how == "error" else Stopped


@pytest.mark.parametrize("how", ["error", "stop", "half"])
@pytest.mark.parametrize("fail_at", range(1, 8))
def test_a_save_that_is_cut_anywhere_leaves_the_old_state_or_the_new_one(
    tmp_path: Path, fail_at: int, how: str
) -> None:
    store = FileStore(tmp_path)
    old = store.save(at(store.save(new_rollout()), 1.0))
    new = at(old, 2.0)
    completed = False
    try:
        FileStore(tmp_path, FailingFiles(fail_at, how)).save(new)
        completed = True
    except (OSError, Stopped):
        pass
    assert completed == (fail_at == 7)
    after = FileStore(tmp_path)
    found = after.load("digits")
    assert after.damage("digits") is None
    assert found in (old, replace(new, revision=3))
    assert found is not None
    assert after.save(at(found, 3.0)).clock_s == 3.0, "the store works on"


@pytest.mark.parametrize("how", ["error", "stop", "half"])
@pytest.mark.parametrize("fail_at", range(1, 11))
def test_a_start_that_is_cut_anywhere_leaves_the_last_rollout_or_the_next(
    tmp_path: Path, fail_at: int, how: str
) -> None:
    """Nine operations: the last rollout goes into the history and becomes the state before the next one."""
    store = FileStore(tmp_path)
    last = store.save(finished(store.save(new_rollout("last"))))
    completed = False
    try:
        FileStore(tmp_path, FailingFiles(fail_at, how)).save(new_rollout("next", started_at=2e9))
        completed = True
    except (OSError, Stopped):
        pass
    assert completed == (fail_at == 10)
    after = FileStore(tmp_path)
    found = after.load("digits")
    assert after.damage("digits") is None
    assert found in (last, replace(new_rollout("next", started_at=2e9), revision=1))
    assert found is not None
    if found.id == "last":
        found = after.save(new_rollout("next", started_at=2e9))
    assert after.save(finished(found)).finished, "the store works on"
    assert [each.id for each in after.history("digits")] == ["last", "next"]


@pytest.mark.parametrize("damage", ["cut", "edited", "emptied", "no number", "endless", "too large"])
def test_a_damaged_file_leaves_the_state_before_it(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = FileStore(tmp_path)
    before = store.save(new_rollout())
    store.save(at(before, 1.0))
    path = tmp_path / "digits.json"
    content = path.read_text()
    texts = {
        "cut": content[: len(content) // 2],
        "edited": content.replace('"pending"', '"flying"'),
        "emptied": "",
        "no number": content.replace('"clock_s": 1.0', '"clock_s": NaN'),
        "endless": content.replace('"clock_s": 1.0', '"clock_s": 1e999'),
        "too large": content.replace('"clock_s": 1.0', f'"clock_s": {10**400}'),
    }
    assert texts[damage] != content
    path.write_text(texts[damage])
    found = store.load("digits")
    assert found == before
    told = store.damage("digits")
    assert told is not None
    assert "digits.json" in told
    assert "the state before it serves (revision 1)" in capsys.readouterr().out
    assert found is not None
    store.save(at(found, 2.0))
    assert store.damage("digits") is None


@pytest.mark.parametrize("content", ["", "three", "-1", str(2**63)])
def test_a_damaged_pin_is_not_taken_for_none(tmp_path: Path, content: str) -> None:
    store = FileStore(tmp_path)
    assert store.pinned("digits") is None
    store.pin("digits", 3)
    (tmp_path / "pinned" / "digits").write_text(content)
    with pytest.raises(InvalidInput, match="pinned/digits holds no version"):
        store.pinned("digits")


def test_a_damaged_file_without_a_state_before_it_is_no_rollout(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    (tmp_path / "digits.json").write_text("{")
    assert store.load("digits") is None
    assert store.damage("digits") is not None


def test_nothing_begins_over_a_record_that_cannot_be_read(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.pin("digits", 1)
    store.save(finished(store.save(new_rollout())))
    for path in tmp_path.glob("digits*.json"):
        path.write_text("{")
    with pytest.raises(FailedPrecondition, match='of model "digits" cannot be read'):
        start(store, "digits", 3, Plan(), 1e9)
    with pytest.raises(FailedPrecondition, match='of model "digits" cannot be read'):
        order(store, "digits", "abort", by="a test", at=1e9)
    assert {path.read_text() for path in tmp_path.glob("digits*.json")} == {"{"}


def test_what_a_record_that_cannot_be_read_says_of_the_version_that_serves_is_later_than_a_pin(
    tmp_path: Path,
) -> None:
    store = FileStore(tmp_path)
    store.pin("digits", 7)
    store.save(new_rollout())
    assert FileStore(tmp_path).unreadable("digits") is None
    for path in tmp_path.glob("digits*.json"):
        path.write_text(path.read_text().replace('"alpha": 0.01', '"alpha": 7'))
    why = store.unreadable("digits")
    assert why is not None
    assert why.endswith("digits.json: the stored plan is not valid: plan.alpha: Input should be less than 1")
    assert store.pinned("digits") == 1
    (tmp_path / "digits.json").write_text("{")
    assert store.pinned("digits") == 7


@pytest.mark.parametrize("to", [-1, 0, 2**63])
def test_a_rollout_to_what_is_no_version_does_not_begin(tmp_path: Path, to: int) -> None:
    store = FileStore(tmp_path)
    store.pin("digits", 1)
    with pytest.raises(InvalidInput, match=f"{to} is not a version; versions are numbers from 1 to"):
        start(store, "digits", to, Plan(), 1e9)
    assert start(store, "digits", 2**63 - 1, Plan(), 1e9).candidate == 2**63 - 1


def test_folders_that_are_no_versions_are_not_let_in(tmp_path: Path) -> None:
    for name in ("1", "12", "0003", str(2**63), "20261130120000000000", "٣", "4.old", "-5"):
        (tmp_path / "digits" / name).mkdir(parents=True)
    (tmp_path / "digits" / "7").write_text("a file")
    assert published_in(tmp_path, "digits") == [1, 3, 12]


def test_a_rollout_to_a_version_that_is_not_there_does_not_begin(tmp_path: Path) -> None:
    """Rollouts are started in other processes than the gateway, which records where the models are."""
    FileStore(tmp_path).pin("digits", 1)
    models = tmp_path / "models"
    assert FileStore(tmp_path).published("digits") == [], "no gateway has noted it yet"
    FileStore(tmp_path).note_models(str(models))
    assert FileStore(tmp_path).published("digits") == [], "as where the models are on another machine"
    for version in ("1", "2"):
        (models / "digits" / version).mkdir(parents=True)
    with pytest.raises(NotFound, match='model "digits" has no version 9 to be loaded; there are: 1, 2'):
        start(FileStore(tmp_path), "digits", 9, Plan(), 1e9)
    assert FileStore(tmp_path).load("digits") is None
    assert start(FileStore(tmp_path), "digits", 2, Plan(), 1e9).candidate == 2


@pytest.mark.parametrize(
    "model", ["_digits", "d" * 200, "digits copy", "digits.previous", ".digits", "zahlen-für-später", "100%"]
)
def test_a_rollout_of_any_model_that_can_be_kept_can_be_read(tmp_path: Path, model: str) -> None:
    store = FileStore(tmp_path)
    store.pin(model, 1)
    store.save(new_rollout())
    begun = start(store, model, 2**53, Plan(), 1e9)
    assert store.load(model) == begun
    store.save(finished(begun))
    following = start(store, model, 3, Plan(), 1e9)
    assert [each.id for each in store.history(model)] == [begun.id, following.id]
    assert store.models() == sorted(("digits", model))
    assert store.pinned(model) == 1


def test_names_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    for name in ("../digits", "a/b", "", "d" * 201, "\ud800"):
        with pytest.raises(InvalidInput, match="cannot be the name of a model"):
            store.load(name)


def test_a_place_that_can_hold_no_folder_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()  # of folders that may not be written, root makes nothing
    with pytest.raises(InvalidInput, match=r"cannot be stored in .*file: .*; pass a folder"):
        FileStore(tmp_path / "file")


@pytest.mark.parametrize("name", ["digits copy.json", ".#digits.json", "digits.previous.json"])
def test_files_that_are_no_models_are_none_of_the_stores(tmp_path: Path, name: str) -> None:
    store = FileStore(tmp_path)
    store.save(new_rollout())
    (tmp_path / name).write_bytes((tmp_path / "digits.json").read_bytes())
    assert [store.load(model) is not None for model in store.models()] == [True]


def test_the_newest_rollout_comes_last_even_if_the_clock_was_set_back_before_it(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    for place, started_at in enumerate((2e9, 1e9, 1.5e9)):
        saved = store.save(new_rollout(f"digits-{place}", started_at=started_at))
        store.save(finished(saved))
    assert [each.id for each in store.history("digits")] == ["digits-1", "digits-0", "digits-2"]


COUNTER = """
import sys
from dataclasses import replace
from pathlib import Path
from serving.errors import Conflict
from serving.rollout.store import FileStore
store, saves = FileStore(Path(sys.argv[1])), 0
while saves < 20:
    found = store.load("digits")
    try:
        store.save(replace(found, clock_s=found.clock_s + 1.0))
        saves += 1
    except Conflict:
        pass
"""


def test_processes_that_save_at_once_lose_no_save(tmp_path: Path) -> None:
    FileStore(tmp_path).save(new_rollout())
    command = [sys.executable, "-c", COUNTER, str(tmp_path)]
    children = [subprocess.Popen(command) for _ in range(2)]
    assert [child.wait(timeout=60) for child in children] == [0, 0]
    found = FileStore(tmp_path).load("digits")
    assert found is not None
    assert (found.clock_s, found.revision) == (40.0, 41)

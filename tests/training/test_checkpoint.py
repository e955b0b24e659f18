"""Checkpoints of a run: what is restored, what a full disk leaves, and who may write them."""

import fcntl
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import psutil
import pytest

from training.checkpoint import Checkpoint, alone
from training.errors import BadInput, TrainingError
from training.history import History


def small_model(optimizer: str = "adam") -> keras.Model:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(optimizer=optimizer, loss="mse")
    model.optimizer.build(model.trainable_variables)
    return model


def test_the_best_weights_come_back_beside_the_latest(tmp_path: Path) -> None:
    model, checkpoint = small_model(), Checkpoint(tmp_path / "run.npz", {})
    best = [np.full_like(array, 7.0) for array in model.get_weights()]
    checkpoint.save(model, History(), best, finished=False)
    other = small_model()
    found = checkpoint.restore(other)
    assert found is not None
    _, restored, finished = found
    assert not finished
    for left, right in zip(best, restored, strict=True):
        np.testing.assert_array_equal(left, right)
    for left, right in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


def test_settings_are_the_same_in_any_order(tmp_path: Path) -> None:
    """A later version of Sluice may list them in another order."""
    first, second = {"seed": 7, "epochs": 3}, {"epochs": 3, "seed": 7}
    path = tmp_path / "run.npz"
    assert Checkpoint(path, first).settings == Checkpoint(path, second).settings


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """Limits the size of files, as if the disk were full at that point."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_leaves_the_state_of_the_epoch_before(tmp_path: Path) -> None:
    model, checkpoint = small_model(), Checkpoint(tmp_path / "run.npz", {})
    checkpoint.save(model, History(), model.get_weights(), finished=False)
    before = checkpoint.path.read_bytes()
    with (
        files_of_at_most(len(before) // 2),
        pytest.raises(TrainingError, match="cannot be written: File too large"),
    ):
        checkpoint.save(model, History(), model.get_weights(), finished=True)
    assert checkpoint.path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [checkpoint.path]


def _archive_of_something_else(path: Path) -> None:
    np.savez(path, x=np.zeros(3))


def _end_of_an_archive(path: Path) -> None:
    np.savez(path, settings=np.array("{}"), state=np.array("{}"))
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    "make",
    [_archive_of_something_else, _end_of_an_archive, Path.mkdir],
    ids=["something else", "its end is missing", "a folder"],
)
def test_what_is_no_checkpoint_is_told_as_that(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    make(path)
    with pytest.raises(BadInput, match=r"run.npz is not a checkpoint .*; remove it to start afresh"):
        Checkpoint(path, {}).restore(small_model())


def test_the_state_of_another_optimizer_is_of_another_model(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "run.npz", {})
    model = small_model("sgd")
    checkpoint.save(model, History(), model.get_weights(), finished=False)
    with pytest.raises(BadInput, match="is of another model than this one"):
        checkpoint.restore(small_model("adam"))


def test_what_else_is_in_the_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "other.npz").touch()
    checkpoint = Checkpoint(tmp_path / "run.npz", {})
    checkpoint.remove()
    assert [entry.name for entry in tmp_path.iterdir()] == ["other.npz"]


def test_who_is_refused_holds_no_file_open(tmp_path: Path) -> None:
    lock = tmp_path / "state" / "run.lock"
    with alone(lock):
        before = psutil.Process().num_fds()
        for _ in range(3):
            with pytest.raises(BadInput, match="another run of this name is training"), alone(lock):
                raise AssertionError
        assert psutil.Process().num_fds() == before


def test_a_lock_that_goes_as_it_is_taken_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if another run ended just then: a third run could not see a lock on a deleted file."""
    lock, locks = tmp_path / "state" / "run.lock", 0

    def with_an_end_before(file: int, how: int) -> None:
        nonlocal locks
        locks += 1
        if locks == 1:
            lock.unlink()
        take(file, how)

    take = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", with_an_end_before)
    with alone(lock):
        with pytest.raises(BadInput, match="another run of this name is training"), alone(lock):
            raise AssertionError
        assert lock.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_goes_as_the_lock_is_made_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, opened = tmp_path / "state" / "run.lock", 0

    def with_an_end_before(path: Any, *options: Any) -> int:
        nonlocal opened
        opened += path == lock
        if path == lock and opened == 1:
            lock.parent.rmdir()
        return open_file(path, *options)

    open_file = os.open
    monkeypatch.setattr(os, "open", with_an_end_before)
    with alone(lock):
        assert lock.exists()
    assert opened == 2

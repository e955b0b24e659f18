"""Training state on disk: one file per run, replaced atomically after each epoch."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from training.errors import BadInput, TrainingError
from training.history import History
from training.publish import is_at

Weights = list[NDArray[Any]]


class Checkpoint:
    """The state of one run: model and optimizer, the best weights so far, the history.

    Args:
        path: an `.npz` file; its folder is made when the first epoch is saved.
        settings: what the run depends on; a file with other settings is not resumed from.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.settings = json.dumps(settings, sort_keys=True)

    def save(self, model: keras.Model, history: History, best: Weights, finished: bool) -> None:
        """Replaces the file; raises `TrainingError`, and leaves it as it was, if there is no room."""
        state = json.dumps({"history": dataclasses.asdict(history), "finished": finished})
        arrays: dict[str, Any] = {"state": np.array(state), "settings": np.array(self.settings)}
        for name, values in (
            ("model", _values(model)),
            ("optimizer", _values(model.optimizer)),
            ("best", best),
        ):
            arrays |= {f"{name}/{index}": value for index, value in enumerate(values)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        try:
            with temporary.open("wb") as file:
                np.savez(file, **arrays)
            temporary.replace(self.path)
        except OSError as error:
            raise TrainingError(f"{self.path} cannot be written: {error.strerror or error}") from error
        finally:
            temporary.unlink(missing_ok=True)  # a partial file would keep a full disk full

    def remove(self) -> None:
        """Removes the file, and its folder if nothing else is in it."""
        self.path.unlink(missing_ok=True)
        with suppress(OSError):
            self.path.parent.rmdir()

    def restore(self, model: keras.Model) -> tuple[History, Weights, bool] | None:
        """Puts the state into a built, compiled model; None without a file, else (history, best, finished).

        Raises `BadInput` if the file is of a run with other settings or another model, or no checkpoint.
        """
        if not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                arrays = dict(archive)
            found, state = str(arrays["settings"]), json.loads(str(arrays["state"]))
        except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise BadInput(f"{self.path} is not a checkpoint ({error}); remove it to start afresh") from error
        if found != self.settings:
            raise BadInput(f"{self.path} is of other settings: {_difference(found, self.settings)}")
        holders = {"model": model, "optimizer": model.optimizer}
        shapes = {
            f"{name}/{index}": tuple(variable.shape)
            for name, holder in holders.items()
            for index, variable in enumerate(holder.variables)
        }
        if shapes != {key: arrays[key].shape for key in arrays if key.partition("/")[0] in holders}:
            raise BadInput(f"{self.path} is of another model than this one; remove it to start afresh")
        for name, holder in holders.items():
            for index, variable in enumerate(holder.variables):
                variable.assign(arrays[f"{name}/{index}"])
        best = [arrays[f"best/{index}"] for index in range(len(model.get_weights()))]
        return History(**state["history"]), best, bool(state["finished"])


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Holds the lock in the file `path`, so that no other run keeps its state in the same files.

    Raises `BadInput` if another run holds it. Afterwards the file is removed, and so are its folder, if it is
    empty, and the one around that, if it was made here.
    """
    made = not path.parent.parent.exists()
    lock = _locked(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)
        with suppress(OSError):
            path.parent.rmdir()
            if made:
                path.parent.parent.rmdir()


def _locked(path: Path) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # a run that ended has just removed the folder
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise BadInput(
                f"{path}: another run of this name is training; wait for it, or choose another --name"
            ) from None
        if is_at(lock, path):
            return lock
        os.close(lock)  # of a file that a run which has ended just removed


def _values(holder: Any) -> Weights:
    return [keras.ops.convert_to_numpy(variable) for variable in holder.variables]


def _difference(found: str, wanted: str) -> str:
    before, now = json.loads(found), json.loads(wanted)
    return ", ".join(
        f"{name} was {before.get(name)!r} and is now {now.get(name)!r}"
        for name in sorted(before | now)
        if before.get(name) != now.get(name)
    )

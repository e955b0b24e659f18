"""Which options are allowed, and where models may be written: checked before anything is loaded."""

import os
from pathlib import Path
from typing import Any

import pytest

from training.config import Hyperparameters, Options, check_folder, check_model_file, check_name, check_place
from training.errors import BadInput


def test_an_epochs_last_batch_is_a_step_though_it_is_not_full() -> None:
    values = Hyperparameters(epochs=5000, batch_size=64)
    for examples, epochs in ((64, 5000), (65, 4000), (128, 4000), (129, 2666)):
        assert Options().within_steps(values, examples).epochs == epochs


@pytest.mark.parametrize("name", [".training", "", "a b", "a/b", "..", "-x"])
def test_what_would_be_no_folder_of_a_model_is_no_name(name: str) -> None:
    with pytest.raises(BadInput, match="is not a valid name for a model"):
        check_name(name)
    with pytest.raises(BadInput, match="is not a valid name for a model"):
        Options(name=name)


@pytest.mark.parametrize("name", ["digits", "_x", "7", "v1.2-b_c"])
def test_what_is_a_name(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("ending", [".h5", ".hdf5"])
def test_who_has_a_file_of_keras_older_format_is_told_how_to_make_a_new_one(
    ending: str, tmp_path: Path
) -> None:
    file = tmp_path / f"old{ending}"
    file.touch()
    with pytest.raises(BadInput, match=r"\.save\('old\.keras'\)` makes a \.keras file of it"):
        check_model_file(file)


def test_a_folder_may_be_made_anywhere_but_below_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").touch()
    for free in ("models", "a/b/c", ".", str(tmp_path / "models")):
        check_folder("--out", Path(free))
    for below in ("taken", "taken/models", "taken/a/b"):
        with pytest.raises(BadInput, match=f"^--out {below}: taken is not a folder"):
            check_folder("--out", Path(below))
    with pytest.raises(BadInput, match=r"^--out taken: taken is not a folder"):
        check_place(Path(), "taken")


def test_a_folder_that_may_not_be_written_to_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reported to root as well, whom permissions do not bind."""
    access = os.access

    def as_another(path: Any, mode: int) -> bool:
        return not (Path(path) == tmp_path and mode & os.W_OK) and access(path, mode)

    monkeypatch.setattr(os, "access", as_another)
    with pytest.raises(BadInput, match=f"^--out {tmp_path}/a/b: {tmp_path} may not be written to"):
        check_folder("--out", tmp_path / "a" / "b")


def test_logs_go_where_files_can_be_written_too(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(BadInput, match=r"^--tensorboard .*/taken is not a folder"):
        Options(out=tmp_path, tensorboard=tmp_path / "taken").check_folders()

"""Half precision is published only if it costs next to nothing, with both accuracies in the card."""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from training import job, recipes
from training.checkpoint import alone
from training.config import Options
from training.errors import BadInput, PublishFailed
from training.publish import versions


def test_a_bfloat16_model_carries_both_accuracies(tmp_path: Path) -> None:
    options = Options(out=tmp_path, epochs=2, examples=300, precision="bfloat16", name="half")
    published = job.train("functional", options, Console(quiet=True))
    assert published is not None
    card = json.loads((published.folder / "assets.extra" / "card.json").read_text())
    both = card["metrics"]["precision"]
    assert card["precision"] == "bfloat16"
    assert set(both) == {"metric", "float32", "bfloat16"}
    assert both["bfloat16"] == card["metrics"]["held_out_accuracy"]
    assert both["bfloat16"] >= both["float32"] - 0.002


def test_where_there_is_nothing_to_resume_that_is_said(tmp_path: Path) -> None:
    said = io.StringIO()
    console = Console(file=said, width=1000)
    job.train("simple-dense", Options(out=tmp_path, epochs=1, resume=True), console)
    assert said.getvalue().startswith(
        f"note: there is no {tmp_path}/.training/simple-dense-simple-dense-simple-dense.npz to resume;"
        " simple-dense is trained from the beginning\n"
    )


class Keeper(io.StringIO):
    """A terminal that, at each line, puts a copy of the state of the runs below a folder aside."""

    def __init__(self, folder: Path, kept: Path) -> None:
        super().__init__()
        self.folder, self.kept = folder, kept

    def write(self, text: str) -> int:
        if (self.folder / ".training").exists():
            shutil.copytree(self.folder / ".training", self.kept, dirs_exist_ok=True)
        return super().write(text)


def test_what_is_published_is_not_published_again(tmp_path: Path) -> None:
    """Where a run was killed after its version had got its name, and before its state was removed."""
    models, kept = tmp_path / "models", tmp_path / "kept"
    options = Options(out=models, epochs=1, name="line", resume=True)
    first = job.train("huber", options, Console(file=Keeper(models, kept)))
    assert first is not None
    assert [entry.name for entry in models.iterdir()] == ["line"]
    (models / "line" / "2" / "assets.extra").mkdir(parents=True)
    (models / "line" / "2" / "assets.extra" / "card.json").write_text('{"training": null}')  # somebody else's
    kept.rename(models / ".training")
    said = io.StringIO()
    again = job.train("huber", options, Console(file=said, width=1000))
    assert again is not None
    assert (again.folder, again.version, again.card) == (first.folder, 1, first.card)
    assert said.getvalue() == f"note: {first.folder} was published before this run was interrupted\n"
    assert versions(models / "line") == [1, 2]
    assert [entry.name for entry in models.iterdir()] == ["line"]
    job.train("huber", options, Console(quiet=True))
    assert versions(models / "line") == [1, 2, 3]  # another run's is another version


def test_two_runs_of_one_name_do_not_share_their_state(tmp_path: Path) -> None:
    options = Options(out=tmp_path / "models", epochs=1, name="line")
    lock = tmp_path / "models" / ".training" / "line-simple-dense.lock"
    with alone(lock):
        with pytest.raises(BadInput, match=r"line-simple-dense\.lock: another run of this name is training;"):
            job.train("simple-dense", options, Console(quiet=True))
        with alone(lock.with_name("other.lock")):
            pass
        assert lock.exists()
    assert not (tmp_path / "models").exists()
    (tmp_path / "models").mkdir()
    with alone(lock):
        pass
    assert list((tmp_path / "models").iterdir()) == []  # whoever made the folder keeps it
    assert job.train("simple-dense", options, Console(quiet=True)) is not None


def test_a_place_where_no_version_can_be_put_is_told_before_training(tmp_path: Path) -> None:
    (tmp_path / "digits").write_text("no folder of a model")
    with pytest.raises(BadInput, match=r"--out .*/digits: .*/digits is not a folder"):
        job.train("sequential", Options(out=tmp_path, epochs=1), Console(quiet=True))
    assert not (tmp_path / ".training").exists()


def test_a_run_is_not_resumed_with_other_examples(tmp_path: Path) -> None:
    plan = recipes.plan("sequential", Options(examples=300))
    fewer = dataclasses.replace(plan.problem, train=plan.problem.train.take(np.arange(200)))
    options = Options(out=tmp_path, examples=300)
    before = job._checkpoint(plan, "sequential", options)
    after = job._checkpoint(dataclasses.replace(plan, problem=fewer), "sequential", options)
    assert before.path == after.path
    assert before.settings != after.settings
    assert before.settings == job._checkpoint(plan, "sequential", options).settings


def test_a_precision_that_costs_too_much_is_refused() -> None:
    plan = recipes.plan("sequential", Options())
    kept = job._allowed(plan, {"held_out_accuracy": 0.98}, {"held_out_accuracy": 0.979}, "float16")
    assert kept["precision"] == {"metric": "held_out_accuracy", "float32": 0.98, "float16": 0.979}
    with pytest.raises(PublishFailed, match=r"takes held_out_accuracy from 0\.98 to 0\.977"):
        job._allowed(plan, {"held_out_accuracy": 0.98}, {"held_out_accuracy": 0.977}, "float16")

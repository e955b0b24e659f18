"""Half precision is published only if it costs next to nothing, with both accuracies in the card."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from training import job, recipes
from training.config import Options
from training.errors import BadInput, PublishFailed


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


def test_a_place_where_no_version_can_be_put_is_told_before_training(tmp_path: Path) -> None:
    (tmp_path / "digits").write_text("no folder of a model")
    with pytest.raises(BadInput, match=r"--out .*/digits: .*/digits is no folder"):
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

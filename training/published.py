"""A published version looked at again: its card, its signatures, its accuracy on other data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training import evaluation, recipes, sources
from training.config import PRESETS, Options
from training.errors import BadInput
from training.pipeline import Arrays
from training.publish import versions
from training.recipes import images
from training.recipes.base import Metrics, Plan, Problem
from training.served import served


def version_folder(path: Path) -> Path:
    """The version that a path means: itself, or the newest in a model's folder."""
    if (path / "saved_model.pb").is_file():
        return path
    found = versions(path)
    if found and (path / str(found[-1]) / "saved_model.pb").is_file():
        return path / str(found[-1])
    raise BadInput(f"{path}: no saved_model.pb in it, nor in a version folder below it")


def read_card(folder: Path) -> dict[str, Any] | None:
    """The card from inside the graph, as a gateway gets it; None if the model has none."""
    with served(folder) as loaded:
        if "describe" not in loaded.signatures:
            return None
        card = loaded.run("describe", {"index": np.zeros(1, np.int32)})["card"][0]
    read: dict[str, Any] = json.loads(card)
    return read


@dataclass(frozen=True)
class Examined:
    """A version's answers to held-out examples."""

    card: dict[str, Any]
    metrics: Metrics
    correct: NDArray[np.bool_] | None


def examine(path: Path, data: str | None) -> Examined:
    """Runs a published version, as it would be served, on held-out examples."""
    folder = version_folder(path)
    card = read_card(folder)
    if card is None:
        raise BadInput(f"{folder}: the model carries no card; publish it with `sluice publish` first")
    problem, plan = _problem(card, data)
    outputs = _outputs(folder, problem)
    if plan is not None:
        correct = plan.correct(problem, outputs) if plan.correct else None
        return Examined(card, plan.judge(problem, outputs), correct)
    return Examined(card, images.judge(problem, outputs), images.correct(problem, outputs))


def compare(first: Path, second: Path, data: str | None) -> dict[str, Any]:
    """McNemar's test between two versions on the same held-out examples."""
    left, right = examine(first, data), examine(second, data)
    if left.correct is None or right.correct is None:
        raise BadInput("only models whose answers are right or wrong can be compared, not regressions")
    if len(left.correct) != len(right.correct):
        raise BadInput(
            f"the two models are judged on {len(left.correct)} and {len(right.correct)} examples;"
            " a paired comparison needs the same ones"
        )
    return evaluation.mcnemar(left.correct, right.correct)


def _outputs(folder: Path, problem: Problem) -> Arrays:
    with served(folder) as loaded:
        return loaded.run_in_batches("serving_default", problem.test.inputs)


def _problem(card: dict[str, Any], data: str | None) -> tuple[Problem, Plan | None]:
    """The held-out examples for a model with this card; a plan too if one of the recipes made it."""
    if card.get("input") is None:
        if card["recipe"] not in PRESETS:
            raise BadInput("only image classifiers and the models of recipes can be evaluated")
        plan = recipes.plan(card["recipe"], Options(data=data or _made_for(card)))
        return plan.problem, plan
    shape = tuple(card["input"][name] for name in ("height", "width", "channels"))
    loaded = sources.load(data or _made_for(card), size=shape[:2], channels=shape[2])
    if loaded.image_shape != shape:
        raise BadInput(f"the model takes images {shape}, and those of {loaded.name} are {loaded.image_shape}")
    if card["labels"] and list(loaded.labels) != card["labels"]:
        raise BadInput(
            f"the model's labels and those of {loaded.name} differ:"
            f" {', '.join(card['labels'][:12])} and {', '.join(loaded.labels[:12])}"
        )
    return images.problem(loaded, seed=0, parity="parity" in card["outputs"]), None


def _made_for(card: dict[str, Any]) -> str:
    data = (card.get("training") or {}).get("data")
    if data not in (*sources.NAMES, "line", "diabetes"):
        raise BadInput("name the data to evaluate on with --data")
    return str(data)

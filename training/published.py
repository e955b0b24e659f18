"""A published version examined: its card, its signatures, its accuracy on other data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from training import evaluation, recipes, sources
from training.config import TABLES, Options
from training.errors import BadInput
from training.publish import version_folder
from training.recipes import images, pairs
from training.recipes.base import Correct, Judge, Metrics, Problem
from training.served import Served, served


@contextmanager
def loaded_version(folder: Path) -> Iterator[Served]:
    """A version as it is served; raises `BadInput` if it cannot be loaded, or fails when it is run."""
    try:
        with served(folder) as loaded:
            yield loaded
    except (tf.errors.OpError, ValueError, LookupError, OSError, RuntimeError) as error:
        raise BadInput(f"{folder} cannot be run: {str(error).partition(chr(10))[0]}") from error


def read_card(folder: Path) -> dict[str, Any] | None:
    """The card from inside the graph, as a gateway gets it; None if the model has none.

    Somebody else's model may have a `describe` of its own, which gives something else: that is not a card.
    """
    with loaded_version(folder) as loaded:
        if "describe" not in loaded.signatures:
            return None
        try:
            card = json.loads(loaded.run("describe", {"index": np.zeros(1, np.int32)})["card"][0])
        except (tf.errors.OpError, ValueError, LookupError, TypeError):
            return None
    return card if isinstance(card, dict) and "schema" in card else None


@dataclass(frozen=True)
class Examined:
    """A version's answers to held-out examples."""

    card: dict[str, Any]
    metrics: Metrics
    correct: NDArray[np.bool_] | None


def examine(path: Path, data: str | None) -> Examined:
    """Runs a published version, as it would be served, on held-out examples."""
    folder, card = _with_card(path)
    problem, judge, correct = _problem(card, data)
    with loaded_version(folder) as loaded:
        outputs = loaded.run_in_batches("serving_default", problem.test.inputs)
    return Examined(card, judge(problem, outputs), correct(problem, outputs) if correct else None)


def compare(first: Path, second: Path, data: str | None) -> dict[str, Any]:
    """McNemar's test between two versions on the same held-out examples."""
    if data is None:
        ours, theirs = (_made_for(_with_card(path)[1]) for path in (first, second))
        if ours != theirs:
            raise BadInput(f"the models were made for {ours} and for {theirs}; name the data with --data")
    left, right = examine(first, data), examine(second, data)
    if left.correct is None or right.correct is None:
        raise BadInput("only models whose answers are right or wrong can be compared, not regressions")
    if len(left.correct) != len(right.correct):
        raise BadInput(
            f"the two models are judged on {len(left.correct)} and {len(right.correct)} examples;"
            " a paired comparison needs the same ones"
        )
    return evaluation.mcnemar(left.correct, right.correct)


def _with_card(path: Path) -> tuple[Path, dict[str, Any]]:
    """The version's folder and its card."""
    folder = version_folder(path)
    card = read_card(folder)
    if card is None:
        raise BadInput(f"{folder}: the model carries no card; publish it with `sluice publish` first")
    return folder, card


def _problem(card: dict[str, Any], data: str | None) -> tuple[Problem, Judge, Correct | None]:
    """The held-out examples for a model with this card, and how its answers to them are judged."""
    if card["task"] == "regression":
        plan = recipes.plan(card["recipe"], Options(data=data or _made_for(card)))
        return plan.problem, plan.judge, plan.correct
    if card["task"] not in ("image-classification", "pairs"):
        raise BadInput("only image classifiers and the models of recipes can be evaluated")
    shape = tuple(next(iter(card["inputs"].values()))["shape"][1:])
    loaded = sources.load(data or _made_for(card), size=shape[:2], channels=shape[2])
    if loaded.image_shape != shape:
        raise BadInput(f"the model takes images {shape}, and those of {loaded.name} are {loaded.image_shape}")
    if card["task"] == "pairs":
        return pairs.problem(loaded, seed=0), pairs.judge, pairs.correct
    if card["labels"] and list(loaded.labels) != card["labels"]:
        raise BadInput(
            f"the model's labels and those of {loaded.name} differ:"
            f" {', '.join(card['labels'][:12])} and {', '.join(loaded.labels[:12])}"
        )
    return images.problem(loaded, seed=0, parity="parity" in card["outputs"]), images.judge, images.correct


def _made_for(card: dict[str, Any]) -> str:
    data = (card.get("training") or {}).get("data")
    if data not in (*sources.NAMES, *TABLES):
        raise BadInput("name the data to evaluate on with --data")
    return str(data)

"""A whole `sluice train`: plan, fit, judge, publish."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from training import sources
from training.card import card, training_section
from training.config import preset
from training.curves import draw_confusion, draw_curves
from training.export import Exported, prove, write
from training.loop import History, fit, predict
from training.progress import reporting
from training.publish import publish
from training.recipes import images
from training.recipes.base import Plan

GOLDEN_EXAMPLES = 16


@dataclass(frozen=True)
class Options:
    """What the user may choose; None leaves the preset's value."""

    data: str | None = None
    out: Path = Path("models")
    name: str | None = None
    depth: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Published:
    """Where a version went, and its card."""

    folder: Path
    version: int
    card: dict[str, Any]


def plan_for(recipe: str, options: Options) -> Plan:
    """The recipe with its data loaded and the user's options in place of the preset's."""
    chosen = preset(recipe)
    given = {name: getattr(options, name) for name in ("epochs", "batch_size", "learning_rate", "seed")}
    values = replace(
        chosen.hyperparameters, **{name: value for name, value in given.items() if value is not None}
    )
    data = sources.load(options.data or chosen.data)
    return images.plan(recipe, data, values, options.depth)


def train(recipe: str, options: Options, console: Console) -> Published:
    """Trains a recipe and publishes what it made."""
    plan = plan_for(recipe, options)
    name = options.name or plan.model_name
    (title, variant), *_ = plan.variants.items()
    with reporting(console, title, plan.hyperparameters.epochs) as report:
        model, history = fit(plan.problem, variant, plan.hyperparameters, report)
    inference = plan.problem.interface.built(variant.build())
    inference.set_weights(model.get_weights())
    metrics = plan.judge(plan.problem, predict(plan.problem, inference, plan.problem.test))
    return publish_trained(plan, name, inference, history, metrics, options.out)


def publish_trained(
    plan: Plan, name: str, model: keras.Model, history: History, metrics: dict[str, Any], out: Path
) -> Published:
    """Publishes a trained model with its card and curves, once it is proved."""
    problem = plan.problem
    described = card(
        model=name,
        recipe=plan.recipe,
        task=plan.task,
        interface=problem.interface,
        labels=problem.labels,
        precision="float32",
    )
    described |= {"training": training_section(plan, history), "metrics": metrics}
    exported = Exported(model, problem.interface, golden_inputs(plan), problem.labels)

    def write_version(folder: Path, version: int) -> None:
        described["version"] = version
        write(exported, folder, name, described)
        extra = folder / "assets.extra"
        draw_curves(extra / "curves.png", f"{name} {version}: {plan.recipe}", history.epochs)
        if "confusion" in metrics:
            draw_confusion(extra / "confusion.png", f"{name} {version}", metrics)
        prove(exported, folder)

    folder, version = publish(out / name, write_version)
    return Published(folder, version, described)


def golden_inputs(plan: Plan) -> Mapping[str, NDArray[Any]]:
    """Held-out examples to bake into the graph, of as many classes as there is room for."""
    test = plan.problem.test
    classes = test.targets.get("scores") if plan.problem.labels else None
    if classes is None:
        return {name: array[:GOLDEN_EXAMPLES] for name, array in test.inputs.items()}
    firsts = [int(np.flatnonzero(classes == value)[0]) for value in np.unique(classes)]
    rest = [index for index in range(min(len(test), 10 * GOLDEN_EXAMPLES)) if index not in firsts]
    chosen = np.array((firsts + rest)[:GOLDEN_EXAMPLES])
    return {name: array[chosen] for name, array in test.inputs.items()}

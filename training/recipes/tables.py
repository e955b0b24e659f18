"""Regression: the line y = 2x - 1, and scikit-learn's diabetes table for Wide & Deep."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import keras
import numpy as np
import tensorflow as tf

from training import evaluation
from training.arrays import SPLIT_SEED
from training.config import Options, Preset
from training.losses import HuberLoss, huber, huber_with
from training.models import line, wide_deep
from training.pipeline import Arrays, Examples
from training.recipes import images
from training.recipes.base import Interface, Metrics, Plan, Problem, Variant

HUBER_THRESHOLD = 1.0
WIDE, DEEP = slice(0, 5), slice(2, 10)  # some features on both paths, as in the paper
_TARGET_SCALE = 100.0  # disease progression of 25 to 346 becomes numbers around one


def plan(chosen: Preset, options: Options) -> Plan:
    """A regression's plan; `simple-dense` on images is a classifier's."""
    spec = options.data or chosen.data
    if spec != chosen.data:
        return images.plan(
            replace(chosen, hyperparameters=replace(chosen.hyperparameters, epochs=30, learning_rate=2e-3)),
            options,
        )
    return Plan(
        recipe=chosen.name,
        task="regression",
        problem=line_problem() if spec == "line" else diabetes_problem(),
        hyperparameters=options.applied_to(chosen.hyperparameters),
        variants=_variants(chosen.name),
        model_name=options.name or chosen.name,
        headline="held_out_mae",
        judge=judge,
        look_inside=_line_weights if spec == "line" else lambda _: {},
        higher_is_better=False,
    )


def _variants(recipe: str) -> dict[str, Variant]:
    if recipe == "simple-dense":
        return {recipe: Variant(line.simple_dense, "mean_squared_error")}
    if recipe == "huber":
        losses = {
            "function": huber,
            "wrapped function": huber_with(HUBER_THRESHOLD),
            "class": HuberLoss(HUBER_THRESHOLD),
        }
        return {name: Variant(line.dense, loss) for name, loss in losses.items()}
    widths = len(range(*WIDE.indices(10))), len(range(*DEEP.indices(10)))
    build = partial(wide_deep.wide_deep, *widths) if recipe == "wide-deep" else wide_deep.WideDeep
    losses = {"main": "mean_squared_error", "auxiliary": "mean_squared_error"}
    return {recipe: Variant(build, losses, loss_weights={"main": 0.8, "auxiliary": 0.2})}


def line_problem() -> Problem:
    """Points of y = 2x - 1 for x in -2..2, without noise."""
    random = np.random.default_rng(SPLIT_SEED)
    x = random.uniform(-2.0, 2.0, (320, 1)).astype(np.float32)
    points = Examples({"x": x}, {"y": 2 * x - 1})
    spec = tf.TensorSpec((None, 1), tf.float32, name="x")
    return Problem("line", Interface({"x": spec}, ("y",)), *_split(points))


def diabetes_problem() -> Problem:
    """scikit-learn's 442 patients: ten features, five of them `wide` and eight `deep`; progression / 100."""
    from sklearn.datasets import load_diabetes

    features, target = load_diabetes(return_X_y=True)
    features = features.astype(np.float32)
    progression = (target / _TARGET_SCALE).astype(np.float32)[:, np.newaxis]
    patients = Examples(
        {"wide": features[:, WIDE], "deep": features[:, DEEP]},
        {"main": progression, "auxiliary": progression},
    )
    specs = {
        name: tf.TensorSpec((None, array.shape[1]), tf.float32, name=name)
        for name, array in patients.inputs.items()
    }
    return Problem("diabetes", Interface(specs, ("main", "auxiliary")), *_split(patients))


def _split(examples: Examples) -> tuple[Examples, Examples, Examples]:
    """Training, validation (a tenth) and held-out examples (a fifth)."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(examples))
    held, kept = len(examples) // 5, len(examples) // 10
    return (
        examples.take(order[held + kept :]),
        examples.take(order[held : held + kept]),
        examples.take(order[:held]),
    )


def judge(problem: Problem, outputs: Arrays) -> Metrics:
    """Errors of the first output over the held-out examples, and of the others by their names."""
    first, *others = problem.interface.outputs
    metrics = {
        "held_out_examples": len(problem.test),
        **evaluation.regression(problem.test.targets[first], outputs[first]),
    }
    for name in others:
        metrics[name] = evaluation.regression(problem.test.targets[name], outputs[name])
    return metrics


def _line_weights(model: keras.Model) -> Metrics:
    w, b = (float(np.reshape(value, ())) for value in model.get_weights())
    return {"w": round(w, 6), "b": round(b, 6)}

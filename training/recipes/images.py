"""Image classifiers: one uint8 image in, probabilities of the classes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from training import evaluation, sources
from training.config import Hyperparameters
from training.errors import BadInput
from training.models.resnet import DEPTHS, ResNet
from training.pipeline import Examples
from training.recipes.base import Interface, Plan, Problem, Variant


def problem(data: sources.ImageData, seed: int) -> Problem:
    """The data set as a classification problem, with a tenth of the training examples kept for validation."""
    kept, held = sources.split_by_class(data.train_classes, 0.1, seed)
    train = Examples({"images": data.train_images}, {"scores": data.train_classes})
    spec = tf.TensorSpec((None, *data.image_shape), tf.uint8, name="images")
    return Problem(
        data=data.name,
        interface=Interface(inputs={"images": spec}, outputs=("scores",)),
        train=train.take(kept),
        validation=train.take(held),
        test=Examples({"images": data.test_images}, {"scores": data.test_classes}),
        labels=data.labels,
        notes=data.notes,
    )


def judge(problem: Problem, outputs: dict[str, Any]) -> dict[str, Any]:
    """Metrics of the held-out examples from the model's `scores`."""
    truth = np.asarray(problem.test.targets["scores"])
    return evaluation.classification(truth, outputs["scores"], problem.labels)


def default_depth(height: int, width: int, channels: int) -> str:
    """A ResNet that suits the images: deep enough to learn them, small enough to train on two cores."""
    side = max(height, width)
    if side > 64:
        return "resnet18"
    return "resnet20" if channels == 3 and side > 16 else "resnet8"


def plan(
    recipe: str, data: sources.ImageData, hyperparameters: Hyperparameters, depth: str | None = None
) -> Plan:
    """An image classifier's plan."""
    task = problem(data, hyperparameters.seed)
    builders: dict[str, Callable[[], keras.Model]] = {"resnet": _resnet(task, depth)}
    return Plan(
        recipe=recipe,
        task="image-classification",
        problem=task,
        hyperparameters=hyperparameters,
        variants={recipe: Variant(builders[recipe], "sparse_categorical_crossentropy", metrics=["accuracy"])},
        model_name=data.name,
        judge=judge,
    )


def _resnet(task: Problem, depth: str | None) -> Callable[[], keras.Model]:
    shape = task.interface.image_shape
    assert shape is not None
    chosen = depth or default_depth(*shape)
    if chosen not in DEPTHS:
        raise BadInput(f"there is no depth {chosen!r}; there are: {', '.join(DEPTHS)}")
    return lambda: ResNet(len(task.labels), chosen)

"""Image classifiers: one uint8 image in, probabilities of the classes out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from training import evaluation, sources
from training.arrays import ImageData, split_by_class
from training.config import Options, Preset
from training.errors import BadInput
from training.models import dense, residual, resnet, vgg
from training.pipeline import Arrays, Examples
from training.recipes.base import Interface, Metrics, Plan, Problem, Variant

Build = Callable[[], keras.Model]

VALIDATION = 0.1
_RESIDUAL_SIDE = 2  # pixels, or its pooling would leave none


def problem(data: ImageData, seed: int, parity: bool = False) -> Problem:
    """The data set as a classification problem, with a tenth of the training examples kept for validation.

    With `parity` there is a second target: 1.0 where the class's number is odd.
    """
    kept, held = split_by_class(data.train_classes, VALIDATION, seed)
    train = _examples(data.train_images, data.train_classes, parity)
    spec = tf.TensorSpec((None, *data.image_shape), tf.uint8, name="images")
    return Problem(
        data=data.name,
        interface=Interface(inputs={"images": spec}, outputs=("scores", "parity")[: 1 + parity]),
        train=train.take(kept),
        validation=train.take(held),
        test=_examples(data.test_images, data.test_classes, parity),
        labels=data.labels,
        notes=data.notes,
    )


def _examples(images: NDArray[Any], classes: NDArray[Any], parity: bool) -> Examples:
    targets: Arrays = {"scores": classes}
    if parity:
        targets["parity"] = (classes % 2).astype(np.float32)[:, np.newaxis]
    return Examples({"images": images}, targets)


def judge(problem: Problem, outputs: Arrays) -> Metrics:
    """Metrics of the held-out examples from the model's `scores`, and of `parity` where there is one."""
    metrics = evaluation.classification(problem.test.targets["scores"], outputs["scores"], problem.labels)
    if "parity" in problem.test.targets and "parity" in outputs:
        right = (outputs["parity"] > 0.5) == (problem.test.targets["parity"] > 0.5)
        metrics["parity_accuracy"] = round(float(right.mean()), 6)
    return metrics


def correct(problem: Problem, outputs: Arrays) -> NDArray[np.bool_]:
    """Which held-out examples have their class on top."""
    right: NDArray[np.bool_] = outputs["scores"].argmax(axis=1) == problem.test.targets["scores"]
    return right


def chosen_data(chosen: Preset, options: Options) -> ImageData:
    """The images to train on: the preset's, or the user's in their place."""
    data = sources.load(options.data or chosen.data, size=options.size, examples=options.examples)
    if options.size not in (None, data.image_shape[:2]):
        height, width, _ = data.image_shape
        raise BadInput(f"--image-size is for folders and zips of images; {data.name} has {height}x{width}")
    return data


def plan(chosen: Preset, options: Options) -> Plan:
    """An image classifier's plan."""
    values = options.applied_to(chosen.hyperparameters)
    data = chosen_data(chosen, options)
    made = problem(data, values.seed, parity=chosen.name == "branches")
    return Plan(
        recipe=chosen.name,
        task="image-classification",
        problem=made,
        hyperparameters=options.within_steps(values, len(made.train)),
        variants=_variants(chosen.name, data.image_shape, len(data.labels), options.depth),
        model_name=options.name or data.name,
        headline="held_out_accuracy",
        judge=judge,
        correct=correct,
    )


def _variants(
    recipe: str, shape: tuple[int, int, int], classes: int, depth: str | None
) -> dict[str, Variant]:
    if recipe == "residual" and min(shape[:2]) < _RESIDUAL_SIDE:
        raise BadInput(f"residual halves the sides once; these are {shape[0]}x{shape[1]}")
    if recipe == "branches":
        branches = Variant(
            partial(dense.branches, shape, classes),
            loss={"scores": "sparse_categorical_crossentropy", "parity": "binary_crossentropy"},
            loss_weights={"scores": 1.0, "parity": 0.3},
            metrics={"scores": ["accuracy"], "parity": ["accuracy"]},
        )
        return {recipe: branches}
    simple: dict[str, Build] = {
        "sequential": partial(dense.sequential, shape, classes),
        "functional": partial(dense.functional, shape, classes),
        "simple-dense": partial(dense.simple_dense, shape, classes),
        "lambda-abs": partial(dense.lambda_abs, shape, classes),
        "lambda-relu": partial(dense.lambda_relu, shape, classes),
        "relu": partial(dense.plain_relu, shape, classes),
        "residual": partial(residual.ResidualNet, classes),
    }
    if recipe == "resnet":
        simple[recipe] = partial(resnet.ResNet, classes, _resnet_depth(depth, *shape))
    if recipe == "vgg":
        simple[recipe] = partial(vgg.VGG, classes, _vgg_depth(depth, *shape))
    names = [recipe]
    if recipe.startswith("lambda"):
        names += [name for name in ("lambda-abs", "lambda-relu", "relu") if name != recipe]
    return {
        name: Variant(simple[name], "sparse_categorical_crossentropy", metrics=["accuracy"]) for name in names
    }


def _resnet_depth(depth: str | None, height: int, width: int, channels: int) -> str:
    """The requested depth, or one deep enough for the images and small enough to train on two cores."""
    if depth is None:
        if max(height, width) > 64:
            return "resnet18"
        return "resnet20" if channels == 3 and max(height, width) > 16 else "resnet8"
    return depth


def _vgg_depth(depth: str | None, height: int, width: int, _: int) -> str:
    """The requested depth, or the deepest that the images are large enough for; vgg16 only on request."""
    side = min(height, width)
    depth = depth or ("vgg4" if side < 16 else "vgg7")
    if side >> len(vgg.BLOCKS[depth]) == 0:
        raise BadInput(f"{depth} halves the sides {len(vgg.BLOCKS[depth])} times; these are {height}x{width}")
    return depth

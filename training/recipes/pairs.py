"""Pairs of images: are both of one class?"""

from __future__ import annotations

from functools import partial

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from training import evaluation
from training.arrays import SPLIT_SEED, ImageData, split_by_class
from training.config import Options, Preset
from training.errors import BadInput
from training.losses import ContrastiveLoss
from training.metrics import PairAccuracy
from training.models.siamese import MARGIN, THRESHOLD, siamese
from training.pipeline import Arrays, Examples
from training.recipes.base import Interface, Metrics, Plan, Problem, Variant
from training.recipes.images import VALIDATION, chosen_data


def pairs(images: NDArray[np.uint8], classes: NDArray[np.int64], rounds: int, seed: int) -> Examples:
    """For each image and round a pair with another image of its class and one with one of another class.

    That is about 2 * rounds * N pairs; an image that is the only one of its class has only the second pair.
    Inputs `left` and `right` uint8 [M, H, W, C]; target `distance` float32 [M, 1], 1.0 for one class.
    Raises `BadInput` if all pairs would be alike.
    """
    random = np.random.default_rng(seed)
    left, right, same = [], [], []
    members = {value: np.flatnonzero(classes == value) for value in np.unique(classes)}
    others = {value: np.flatnonzero(classes != value) for value in members}
    if len(members) < 2 or max(map(len, members.values())) < 2:
        raise BadInput(
            f"no pairs can be made of {len(classes)} images in {len(members)} classes; the images to train"
            " on, to validate on and held out must each be of two classes, and two of them of one"
        )
    for _ in range(rounds):
        for index, value in enumerate(classes):
            if len(members[value]) > 1:
                left.append(index)
                right.append(_another(index, members[value], random))
                same.append(1.0)
            left.append(index)
            right.append(random.choice(others[value]))
            same.append(0.0)
    targets = np.array(same, np.float32)[:, np.newaxis]
    inputs: Arrays = {"left": images[left], "right": images[right]}
    return Examples(inputs, {"distance": targets, "same": targets})


def _another(index: int, members: NDArray[np.intp], random: np.random.Generator) -> int:
    """One of the members that is not this one, each as likely."""
    drawn = random.choice(members[:-1])
    return int(members[-1] if drawn == index else drawn)


def problem(data: ImageData, seed: int) -> Problem:
    """Pairs drawn within each split, so that no held-out image was ever seen in training."""
    kept, held = split_by_class(data.train_classes, VALIDATION, seed)
    specs = {
        side: tf.TensorSpec((None, *data.image_shape), tf.uint8, name=side) for side in ("left", "right")
    }
    return Problem(
        data=data.name,
        interface=Interface(inputs=specs, outputs=("distance", "same")),
        train=pairs(data.train_images[kept], data.train_classes[kept], 4, seed),
        validation=pairs(data.train_images[held], data.train_classes[held], 2, seed),
        test=pairs(data.test_images, data.test_classes, 1, SPLIT_SEED),
        notes=data.notes,
    )


def correct(problem: Problem, outputs: Arrays) -> NDArray[np.bool_]:
    """Which held-out pairs are judged rightly."""
    right: NDArray[np.bool_] = outputs["same"].reshape(-1) == problem.test.targets["same"].reshape(-1)
    return right


def judge(problem: Problem, outputs: Arrays) -> Metrics:
    """Accuracy over the held-out pairs, and precision and recall of "same" and "different"."""
    truth = problem.test.targets["same"].reshape(-1).astype(np.int64)
    same = outputs["same"].reshape(-1).astype(np.int64)
    matrix = evaluation.confusion_matrix(truth, same, 2)
    return {
        "held_out_examples": len(truth),
        "held_out_accuracy": round(float((truth == same).mean()), 6),
        "threshold": THRESHOLD,
        "per_class": evaluation.per_class(matrix, ("different", "same")),
        "confusion": matrix.tolist(),
    }


def plan(chosen: Preset, options: Options) -> Plan:
    """The siamese network's plan."""
    values = options.applied_to(chosen.hyperparameters)
    data = chosen_data(chosen, options)
    made = problem(data, values.seed)
    variant = Variant(
        partial(siamese, data.image_shape),
        loss={"distance": ContrastiveLoss(MARGIN), "same": None},
        metrics={"distance": [PairAccuracy(THRESHOLD)], "same": []},
    )
    return Plan(
        recipe=chosen.name,
        task="pairs",
        problem=made,
        hyperparameters=options.within_steps(values, len(made.train)),
        variants={chosen.name: variant},
        model_name=options.name or chosen.name,
        headline="held_out_accuracy",
        judge=judge,
        correct=correct,
    )

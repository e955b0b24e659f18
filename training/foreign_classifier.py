"""A model of somebody's own as an image classifier: `images` uint8 in, `scores` out, labels, what is odd."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from training.errors import BadInput
from training.evaluation import are_probabilities
from training.foreign_loading import IMAGE_RANK, ForeignModel, random_inputs, refusing
from training.recipes.base import Interface

_GREY_OR_COLOUR = (1, 3)


def as_classifier(
    model: ForeignModel, pixel_scale: float, path: Path
) -> tuple[ForeignModel, Interface] | None:
    """The model with `images` uint8 in and `scores` out, if it is one of images to a vector each."""
    if len(model.inputs) != 1:
        return None
    ((name, spec),) = model.inputs.items()
    output = model.outputs[0] if len(model.outputs) == 1 else "scores"
    if spec.shape.rank != IMAGE_RANK or spec.shape[3] not in _GREY_OR_COLOUR or output not in model.outputs:
        return None
    with refusing(path, "cannot be run on examples"):
        probe = model.call({name: tf.constant(random_inputs(spec, 1))})
    if probe[output].shape.rank != 2:
        return None
    if pixel_scale != 1.0 and not spec.dtype.is_floating:
        raise BadInput(f"{path} takes pixels as {spec.dtype.name}, which --pixel-scale would round")

    def call(inputs: Mapping[str, Any]) -> dict[str, Any]:
        pixels = tf.cast(inputs["images"], tf.float32) * pixel_scale
        return {"scores": model.call({name: tf.cast(pixels, spec.dtype)})[output]}

    images = tf.TensorSpec((None, *spec.shape[1:]), tf.uint8, "images")
    interface = Interface({"images": images}, ("scores",))
    return ForeignModel(call, interface.inputs, interface.outputs, model.tracked, model.archive), interface


def read_labels(path: Path | None, classes: int) -> tuple[str, ...]:
    """One label a line; without a file the classes' numbers."""
    if path is None:
        return tuple(str(index) for index in range(classes))
    try:
        labels = tuple(path.read_text(encoding="utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise BadInput(f"--labels {path}: {reason}; it is a text file with a label a line") from error
    if len(labels) != classes:
        raise BadInput(f"{path} has {len(labels)} labels, a line each, and the model has {classes} classes")
    if blank := [number for number, label in enumerate(labels, start=1) if not label.strip()]:
        raise BadInput(f"{path}: line {blank[0]} is blank")
    return labels


def notes_on(scores: NDArray[np.float32]) -> tuple[str, ...]:
    """What is odd about the scores [N, K] of the examples that the model was proved with."""
    if scores.shape[1] == 1:
        note = "there is one score an image, so one class, which is always on top; for two, end with softmax"
        return (note,)
    if are_probabilities(scores):
        return ()
    one = scores[0]
    note = (
        f"the scores are no probabilities: those of one image are {one.min():.3g} to {one.max():.3g} and add"
        f" up to {one.sum():.3g}; they are served as they are; if they are logits, end the model with softmax"
    )
    return (note,)

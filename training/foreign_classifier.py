"""A user's own model as an image classifier: `images` uint8 in, `scores` out, labels, notes on oddities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from training.errors import BadInput
from training.evaluation import are_probabilities
from training.foreign_loading import IMAGE_RANK, ForeignModel, random_inputs, refusing
from training.labels import begin_with_numbers
from training.recipes.base import Interface

_GREY_OR_COLOUR = (1, 3)
_WEIGHING = (
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv2D,
    keras.layers.Dense,
)
# Layers that, outside of training, leave pixels the numbers that they are.
_KEEPING = (
    keras.layers.InputLayer,
    keras.layers.Reshape,
    keras.layers.Permute,
    keras.layers.Flatten,
    keras.layers.Dropout,
    keras.layers.ZeroPadding2D,
    keras.layers.Cropping2D,
    keras.layers.Resizing,
    keras.layers.CenterCrop,
    keras.layers.RandomFlip,
    keras.layers.RandomRotation,
    keras.layers.RandomZoom,
    keras.layers.RandomTranslation,
    keras.layers.RandomCrop,
    keras.layers.RandomContrast,
    keras.layers.RandomBrightness,
)


def why_none(model: ForeignModel, path: Path) -> str | None:
    """Why a model is not an image classifier, and what would make it one; None if it is one."""
    if len(model.inputs) != 1:
        return f"it takes the inputs {', '.join(model.inputs)}, and not only images"
    ((name, spec),) = model.inputs.items()
    if spec.shape.rank != IMAGE_RANK or spec.shape[3] not in _GREY_OR_COLOUR:
        return f"it takes {_shown(spec.shape)}, and not images [N, H, W, 1 or 3]{_instead(spec.shape)}"
    output = _output_of_scores(model)
    if output not in model.outputs:
        return f"it answers {', '.join(model.outputs)}, and none of them is called scores"
    with refusing(path, "cannot be run on examples"):
        answered = model.call({name: tf.constant(random_inputs(spec, 1))})[output].shape
    if answered.rank != 2:
        return f"it answers {_shown((None, *answered[1:]))} to images, and not scores [N, K]"
    return None


def _output_of_scores(model: ForeignModel) -> str:
    return model.outputs[0] if len(model.outputs) == 1 else "scores"


def _shown(shape: Iterable[int | None]) -> str:
    return f"[{', '.join('N' if size is None else str(size) for size in shape)}]"


def _instead(shape: tf.TensorShape) -> str:
    """How to turn a model that is like a classifier, except for its inputs' shape, into one for images."""
    sizes = tuple(shape[1:])
    if len(sizes) == 3 and sizes[0] in _GREY_OR_COLOUR:  # channels first, as in PyTorch
        channels, height, width = sizes
        image, layer = (height, width, channels), "Permute((3, 1, 2))"
    elif len(sizes) == 2:
        image, layer = (*sizes, 1), f"Reshape({sizes})"
    else:
        return ""
    return f"; if these are images, begin it with keras.Input({image}) and keras.layers.{layer}"


def as_classifier(model: ForeignModel, pixel_scale: float, path: Path) -> tuple[ForeignModel, Interface]:
    """The model with `images` uint8 in and `scores` out; `why_none` must have nothing against it."""
    ((name, spec),) = model.inputs.items()
    output = _output_of_scores(model)
    if pixel_scale != 1.0 and not spec.dtype.is_floating:
        raise BadInput(f"{path} takes pixels as {spec.dtype.name}, which --pixel-scale would round")

    def call(inputs: Mapping[str, Any]) -> dict[str, Any]:
        pixels = tf.cast(inputs["images"], tf.float32) * pixel_scale
        return {"scores": model.call({name: tf.cast(pixels, spec.dtype)})[output]}

    images = tf.TensorSpec((None, *spec.shape[1:]), tf.uint8, "images")
    interface = Interface({"images": images}, ("scores",))
    return replace(model, call=call, inputs=interface.inputs, outputs=interface.outputs), interface


def of_two_classes(model: ForeignModel, scores: NDArray[np.float32], path: Path) -> ForeignModel:
    """A classifier whose single score, a sigmoid's, is that of the second of two classes, made to give both.

    Args:
        model: the classifier.
        scores: what it answers to the examples, [N, 1].
        path: where it is from.
    """
    if scores.min() < 0 or scores.max() > 1:
        raise BadInput(
            f"{path} answers one score an image, of which two labels need a probability, that of the second;"
            f" to {len(scores)} examples it answers {scores.min():.3g} to {scores.max():.3g}; end it with a"
            " sigmoid"
        )

    def call(inputs: Mapping[str, Any]) -> dict[str, Any]:
        second = model.call(inputs)["scores"]
        return {"scores": tf.concat([1.0 - second, second], axis=1)}

    return replace(model, call=call)


def notes_on(
    model: ForeignModel, labels: Sequence[str], scores: NDArray[np.float32], pixel_scale: float
) -> Iterator[str]:
    """What looks odd about a classifier: its pixels, its labels, and its scores [N, K] for the examples."""
    if (
        pixel_scale == 1.0
        and model.archive is not None
        and (layer := _takes_pixels_as_they_are(model.archive))
    ):
        yield (
            f"its first layer, {layer}, gets pixels of 0 to 255; if it was trained on others, publish it with"
            " --pixel-scale 1/255 (which makes them 0 to 1), or with layers in it that do what was done there"
        )
    if pixel_scale > 1.0:
        yield f"--pixel-scale {pixel_scale:g} makes pixels of 0 to {255 * pixel_scale:,.0f}; 1/255 of 0 to 1"
    if begin_with_numbers(labels):
        yield (
            f"the labels begin with numbers, as in {labels[-1]!r}; if these only count the lines, publish it"
            " again with a file without them"
        )
    if scores.shape[1] == 1:
        yield (
            "there is one score an image, so one class, which is always on top; if it is the probability of"
            " the second of two classes, publish it with --labels and both"
        )
    elif not are_probabilities(scores):
        one = scores[0]
        yield (
            f"the scores are not probabilities: those of one image are {one.min():.3g} to {one.max():.3g} and"
            f" add up to {one.sum():.3g}; they are served as they are; if they are logits, end the model with"
            " softmax"
        )


def _takes_pixels_as_they_are(model: keras.Model) -> str | None:
    """The name of the layer with weights that sees pixels first, if nothing before it can scale them.

    Custom code may do anything: about a model with such code nothing is said.
    """
    is_graph = bool(getattr(model, "inputs", None))  # Sequential or functional: its layers are in order
    for layer in model.layers if is_graph else ():
        if isinstance(layer, keras.Model):
            return _takes_pixels_as_they_are(layer)
        if isinstance(layer, _WEIGHING):
            return str(layer.name)
        if not isinstance(layer, _KEEPING):
            return None
    return None

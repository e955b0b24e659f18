"""Models that were not made here: a `.keras` archive or a SavedModel of the user's own, published alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from keyword import iskeyword
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from training.card import card
from training.config import check_model_file, check_place
from training.errors import BadInput
from training.export import HALF_TOLERANCE, Exported, graph_nodes
from training.foreign_classifier import as_classifier, notes_on, read_labels
from training.foreign_loading import ForeignModel, load, random_inputs, refusing
from training.recipes.base import Interface
from training.releases import GOLDEN_EXAMPLES, Published, release
from training.signatures import Call
from training.sources import name_of


def publish_file(
    path: Path,
    out: Path,
    name: str | None = None,
    labels: Path | None = None,
    pixel_scale: float = 1.0,
    freeze: bool = True,
) -> Published:
    """Publishes a `.keras` file or a SavedModel folder as the next version of a model.

    A model of one image input and scores [N, K] (its only output, or the one called `scores`) becomes an
    image classifier: `images` uint8 in, multiplied by `pixel_scale`, `scores` out. Any other keeps its own
    names.

    Args:
        path: the file or folder.
        out: folder of models.
        name: of the model; None takes the file's.
        labels: a text file with a label a line, as many as there are scores.
        pixel_scale: what pixels 0..255 are multiplied by before the model gets them.
        freeze: fold variables into constants.
    """
    name = name_of(path) if name is None else name
    check_place(out, name)
    check_model_file(path)
    if not 0 < pixel_scale < math.inf:
        raise BadInput(f"--pixel-scale is {pixel_scale}; it must be a number above 0")
    model = load(path)
    image = as_classifier(model, pixel_scale, path)
    if image is None:
        _check_no_classifier(model, labels, pixel_scale, path)
    chosen, interface = image or (model, Interface(model.inputs, model.outputs, own=True))
    golden = _golden(interface.inputs)
    outputs = _answers(chosen.call, golden, path)
    with refusing(path, "cannot be made a graph, as which it is served"):
        precision = _precision(chosen.call, interface.inputs)
    names = read_labels(labels, int(outputs["scores"].shape[1])) if image else ()
    exported = Exported(
        chosen.call, chosen.tracked, interface, golden, model.archive, names, precision, freeze
    )
    described = card(
        model=name,
        recipe="own",
        task="image-classification" if image else "own",
        interface=interface,
        labels=names,
        precision=precision,
    )
    published = release(out / name, exported, described)
    return replace(published, notes=notes_on(outputs["scores"].numpy()) if image else ())


def _check_no_classifier(model: ForeignModel, labels: Path | None, pixel_scale: float, path: Path) -> None:
    """Raises `BadInput` for what only an image classifier can be given, and for inputs that none can name."""
    if labels is not None:
        raise BadInput(f"{path} is no image classifier, so there is nothing that --labels could name")
    if pixel_scale != 1.0:
        raise BadInput(f"{path} is no image classifier, so --pixel-scale has nothing to multiply")
    if odd := [key for key in model.inputs if not key.isidentifier() or iskeyword(key)]:
        raise BadInput(
            f"{path} calls an input {odd[0]!r}; a name must be of letters, digits and `_`,"
            " and none of Python's own words"
        )


def _answers(call: Call, golden: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """What a model answers to the golden examples: one answer to each, the same when it is asked again."""
    examples = {key: tf.constant(array) for key, array in golden.items()}
    with refusing(path, "cannot be run on examples"):
        outputs, again = call(examples), call(examples)
    for key, output in outputs.items():
        if output.shape[:1] != (GOLDEN_EXAMPLES,):
            raise BadInput(
                f"{path} answers {key} {output.shape} to {GOLDEN_EXAMPLES} examples; only an answer to each,"
                " numbers [N, ...], can be published"
            )
        if np.abs(output - again[key]).max(initial=0.0) > HALF_TOLERANCE * np.abs(output).max(initial=1.0):
            raise BadInput(
                f"{path} answers {key} otherwise when it is asked again, as with dropout or augmentation that"
                " is not only for training; publish the .keras file, or a model without those layers"
            )
    return outputs


def _precision(call: Call, inputs: Mapping[str, tf.TensorSpec]) -> str:
    """The type that the model computes in: half precision if any operation does."""
    nodes = graph_nodes(tf.function(call).get_concrete_function(dict(inputs)))
    kinds = {attribute.type for node in nodes for attribute in node.attr.values()}
    half = [kind.name for kind in (tf.bfloat16, tf.float16) if kind.as_datatype_enum in kinds]
    return half[0] if half else "float32"


def _golden(inputs: Mapping[str, tf.TensorSpec]) -> dict[str, NDArray[Any]]:
    return {name: random_inputs(spec, GOLDEN_EXAMPLES) for name, spec in inputs.items()}

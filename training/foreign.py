"""Publishes models that were not made here: a `.keras` archive or a SavedModel of the user's own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from keyword import iskeyword
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from training.card import card
from training.config import check_model_file, check_place
from training.errors import BadInput
from training.export import HALF_TOLERANCE, Exported
from training.foreign_classifier import as_classifier, notes_on, of_two_classes, why_none
from training.foreign_loading import ForeignModel, load, random_inputs, refusing
from training.freezing import graph_nodes
from training.labels import read_labels
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
        name: of the model; None takes the file's name, or for a version's folder the model's.
        labels: a text file with one label per line, as many as there are scores; or two for a single score,
            which is then that of the second.
        pixel_scale: what pixels 0..255 are multiplied by before the model gets them.
        freeze: fold variables into constants.
    """
    name = _name_of_model(path) if name is None else name
    check_place(out, name)
    check_model_file(path)
    if not 0 < pixel_scale < math.inf:
        raise BadInput(f"--pixel-scale is {pixel_scale}; it must be a number above 0")
    model = load(path)
    reason = why_none(model, path)
    if reason is None:
        made = _made_classifier(model, labels, pixel_scale, path)
    else:
        made = _made_as_it_is(model, reason, labels, pixel_scale, path)
    with refusing(path, "cannot be made a graph, as which it is served"):
        precision = _precision(made.call, made.interface.inputs)
    exported = Exported(
        made.call, model.tracked, made.interface, made.golden, model.archive, made.labels, precision, freeze
    )
    described = card(
        model=name,
        recipe="own",
        task="own" if reason else "image-classification",
        interface=made.interface,
        labels=made.labels,
        precision=precision,
    )
    return replace(release(out / name, exported, described), notes=made.notes)


def _name_of_model(path: Path) -> str:
    found = name_of(path)
    return path.absolute().parent.name if path.is_dir() and found.isdecimal() else found


@dataclass(frozen=True)
class _Made:
    """What is published of a model."""

    call: Call
    interface: Interface
    golden: Mapping[str, NDArray[Any]]
    labels: tuple[str, ...]
    notes: tuple[str, ...]


def _made_classifier(model: ForeignModel, labels: Path | None, pixel_scale: float, path: Path) -> _Made:
    chosen, interface = as_classifier(model, pixel_scale, path)
    names = None if labels is None else read_labels(labels)
    golden = _golden(interface.inputs)
    scores = _answers(chosen.call, golden, path)["scores"].numpy()
    if scores.shape[1] == 1 and names is not None and len(names) == 2:
        chosen = of_two_classes(chosen, scores, path)
        scores = np.concatenate([1 - scores, scores], axis=1)
    classes = scores.shape[1]
    if names is not None and len(names) != classes:
        found = "1 label" if len(names) == 1 else f"{len(names)} labels"
        raise BadInput(f"{labels} has {found}, a line each, and the model has {classes} classes")
    named = names or tuple(str(index) for index in range(classes))
    return _Made(chosen.call, interface, golden, named, tuple(notes_on(model, named, scores, pixel_scale)))


def _made_as_it_is(
    model: ForeignModel, reason: str, labels: Path | None, pixel_scale: float, path: Path
) -> _Made:
    """A model that is not an image classifier, for this reason, and keeps its inputs and outputs."""
    _check_no_classifier(model, reason, labels, pixel_scale, path)
    golden = _golden(model.inputs)
    _answers(model.call, golden, path)
    interface = Interface(model.inputs, model.outputs, own=True)
    note = f"it is not an image classifier, and is called by :predict: {reason}"
    return _Made(model.call, interface, golden, (), (note,))


def _check_no_classifier(
    model: ForeignModel, reason: str, labels: Path | None, pixel_scale: float, path: Path
) -> None:
    """Raises `BadInput` for flags that only fit an image classifier, and for inputs that cannot be named."""
    if labels is not None:
        text = "so there is nothing that --labels could name"
        raise BadInput(f"{path} is not an image classifier, {text}: {reason}")
    if pixel_scale != 1.0:
        text = "so --pixel-scale has nothing to multiply"
        raise BadInput(f"{path} is not an image classifier, {text}: {reason}")
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

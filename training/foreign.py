"""Models that were not made here: a `.keras` archive or a SavedModel of the user's own, published alike."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from keyword import iskeyword
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from training.card import card
from training.config import check_model_file, check_place
from training.errors import BadInput, TrainingError, told
from training.evaluation import are_probabilities
from training.export import HALF_TOLERANCE, Exported
from training.freezing import graph_nodes
from training.models import residual, resnet, vgg, wide_deep  # noqa: F401 - their classes register themselves
from training.recipes.base import Interface
from training.releases import GOLDEN_EXAMPLES, Published, release
from training.signatures import Call
from training.sources import name_of

_GREY_OR_COLOUR = (1, 3)
_IMAGE_RANK = 4
_STRUCTURES = (dict, list, tuple)
_INSTEAD = "where it was made, `model.export(FOLDER)` writes a SavedModel that can be published"


@dataclass(frozen=True)
class _Model:
    """Whatever was loaded, by named tensors."""

    call: Call
    inputs: Mapping[str, tf.TensorSpec]
    outputs: tuple[str, ...]
    tracked: Sequence[Any]
    archive: keras.Model | None = None


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
    model = _load(path)
    image = _as_classifier(model, pixel_scale, path)
    if image is None:
        _check_no_classifier(model, labels, pixel_scale, path)
    chosen, interface = image or (model, Interface(model.inputs, model.outputs, own=True))
    golden = _golden(interface.inputs)
    outputs = _answers(chosen.call, golden, path)
    with _refusing(path, "cannot be made a graph, as which it is served"):
        precision = _precision(chosen.call, interface.inputs)
    names = _labels(labels, int(outputs["scores"].shape[1])) if image else ()
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
    return replace(published, notes=_notes(outputs["scores"].numpy()) if image else ())


def _check_no_classifier(model: _Model, labels: Path | None, pixel_scale: float, path: Path) -> None:
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
    with _refusing(path, "cannot be run on examples"):
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


@contextmanager
def _refusing(path: Path, what: str) -> Iterator[None]:
    """Whatever a model raises, whose layers may be anybody's code, as `BadInput`: `what` it cannot do."""
    try:
        yield
    except (TrainingError, MemoryError):
        raise
    except Exception as error:
        raise BadInput(f"{path} {what}: {told(error)}") from error


def _precision(call: Call, inputs: Mapping[str, tf.TensorSpec]) -> str:
    """The type that the model computes in: half precision if any operation does."""
    nodes = graph_nodes(tf.function(call).get_concrete_function(dict(inputs)))
    kinds = {attribute.type for node in nodes for attribute in node.attr.values()}
    half = [kind.name for kind in (tf.bfloat16, tf.float16) if kind.as_datatype_enum in kinds]
    return half[0] if half else "float32"


def _notes(scores: NDArray[np.float32]) -> tuple[str, ...]:
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


def load_archive(path: Path) -> keras.Model:
    """A `.keras` file, without running any code that it may carry."""
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # a damaged archive makes Keras and zipfile raise almost anything
        text = str(error)
        if "arbitrary code" in text:
            raise BadInput(
                f"{path} has a Lambda layer that carries Python code, and loading would run it; {_INSTEAD}"
            ) from error
        unknown = re.search(r"Could not locate (class|function) '([^']+)'", text)
        if unknown:
            reason = f"it needs the {unknown[1]} {unknown[2]}, which is not registered here; {_INSTEAD}"
        else:
            reason = told(error)
        raise BadInput(f"{path} cannot be loaded: {reason}") from error


def _load(path: Path) -> _Model:
    if path.is_dir():
        return _load_saved_model(path)
    model = load_archive(path)
    interface = _keras_interface(model, path)

    def call(inputs: Mapping[str, Any]) -> dict[str, Any]:
        return interface.call(model, inputs)

    return _Model(call, interface.inputs, interface.outputs, _resources(model), model)


def _resources(model: keras.Model) -> list[Any]:
    """What a session must find: variables, and the tables in which layers look values up."""
    kind = tf.saved_model.experimental.TrackableResource
    attributes = [value for layer in model._flatten_layers() for value in vars(layer).values()]
    tables = [value for value in attributes if isinstance(value, kind)]
    return [*(variable.value for variable in model.variables), *tables]


def _keras_interface(model: keras.Model, path: Path) -> Interface:
    """Names, shapes and types of a Keras model's inputs, and names of its outputs."""
    if hasattr(model, "inputs") and model.inputs:
        named = {model.inputs[0].name: model.inputs[0]} if len(model.inputs) == 1 else model.input
        if not isinstance(named, dict):
            raise BadInput(f"{path} takes a list of inputs; several inputs must be a dictionary, by name")
        if odd := [name for name, tensor in named.items() if isinstance(tensor, _STRUCTURES)]:
            raise BadInput(f"{path} takes several inputs as {odd[0]!r}; each must have a name of its own")
        # Keras notes the size of the batch that a model without an Input was first called with
        specs = {
            name: tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype, name)
            for name, tensor in named.items()
        }
    else:
        with _refusing(path, "does not say what shape it takes"):
            shape = (model.get_build_config() or {}).get("input_shape")
        if not isinstance(shape, (list, tuple)) or isinstance(shape[0], (list, tuple)):
            raise BadInput(
                f"{path} does not say what shape it takes; build it on one input before saving it, or,"
                f" {_INSTEAD}"
            )
        specs = {"inputs": tf.TensorSpec((None, *shape[1:]), tf.float32, "inputs")}
    _check_shapes(specs, path)
    with _refusing(path, "cannot be run on examples"):
        probe = model(_argument({name: _examples(spec, 1) for name, spec in specs.items()}), training=False)
    if isinstance(probe, (list, tuple)):
        raise BadInput(f"{path} answers a list of outputs; several outputs must be a dictionary, by name")
    if not isinstance(probe, dict):
        return Interface(specs, ("outputs",))
    if odd := [name for name, tensor in probe.items() if isinstance(tensor, _STRUCTURES)]:
        raise BadInput(f"{path} answers several outputs as {odd[0]!r}; each must have a name of its own")
    return Interface(specs, tuple(probe))


def _check_shapes(specs: Mapping[str, tf.TensorSpec], path: Path) -> None:
    """Raises `BadInput` for inputs that are not [N, ...] of one known size for any N."""
    for name, spec in specs.items():
        if not spec.shape.rank or None in spec.shape[1:]:
            raise BadInput(
                f"{path} takes inputs of any size ({name} {spec.shape}); only the first dimension may be open"
            )
        if spec.shape[0] is not None:
            raise BadInput(
                f"{path} takes batches of {spec.shape[0]} only ({name} {spec.shape});"
                " the first dimension must be open"
            )


def _argument(inputs: Mapping[str, Any]) -> Any:
    return dict(inputs) if len(inputs) > 1 else next(iter(inputs.values()))


def _load_saved_model(path: Path) -> _Model:
    try:
        loaded = _to_serve(path)
        function = loaded.signatures["serving_default"]
    except (OSError, tf.errors.OpError, ValueError, RuntimeError) as error:
        if "0 MetaGraphs" in str(error):
            raise BadInput(f"{path} has an empty saved_model.pb: is it written still?") from error
        raise BadInput(
            f"{path} cannot be loaded as a SavedModel: {str(error).partition(chr(10))[0]}"
        ) from error
    except KeyError:
        raise BadInput(
            f"{path} has no signature serving_default; there are {list(loaded.signatures)}"
        ) from None
    if any(operation.type == "VariableV2" for operation in function.graph.get_operations()):
        raise BadInput(
            f"{path} has variables of TensorFlow 1's old kind, which cannot be written again; save it with"
            " `tf.compat.v1.enable_resource_variables()`, or copy it into the folder of models as it is"
        )
    inputs = function.structured_input_signature[1]
    _check_shapes(inputs, path)
    for name, spec in function.structured_outputs.items():
        if spec.shape.rank == 0 or spec.dtype == tf.string:
            raise BadInput(
                f"{path} answers {name}, {spec.dtype.name} {spec.shape};"
                " only numbers [N, ...] can be published"
            )

    def call(tensors: Mapping[str, Any]) -> dict[str, Any]:
        outputs: dict[str, Any] = function(**tensors)
        return {name: tf.cast(output, tf.float32) for name, output in outputs.items()}

    return _Model(call, inputs, tuple(sorted(function.structured_outputs)), [loaded])


def _to_serve(path: Path) -> Any:
    """What a SavedModel has for serving; there may be another graph in it, for training."""
    try:
        return tf.saved_model.load(str(path))
    except ValueError as error:
        if not re.search("there are [1-9][0-9]* MetaGraphs", str(error)):
            raise
        return tf.saved_model.load(str(path), tags=["serve"])


def _as_classifier(model: _Model, pixel_scale: float, path: Path) -> tuple[_Model, Interface] | None:
    """The model with `images` uint8 in and `scores` out, if it is one of images to a vector each."""
    if len(model.inputs) != 1:
        return None
    ((name, spec),) = model.inputs.items()
    output = model.outputs[0] if len(model.outputs) == 1 else "scores"
    if spec.shape.rank != _IMAGE_RANK or spec.shape[3] not in _GREY_OR_COLOUR or output not in model.outputs:
        return None
    with _refusing(path, "cannot be run on examples"):
        probe = model.call({name: tf.constant(_examples(spec, 1))})
    if probe[output].shape.rank != 2:
        return None
    if pixel_scale != 1.0 and not spec.dtype.is_floating:
        raise BadInput(f"{path} takes pixels as {spec.dtype.name}, which --pixel-scale would round")

    def call(inputs: Mapping[str, Any]) -> dict[str, Any]:
        pixels = tf.cast(inputs["images"], tf.float32) * pixel_scale
        return {"scores": model.call({name: tf.cast(pixels, spec.dtype)})[output]}

    images = tf.TensorSpec((None, *spec.shape[1:]), tf.uint8, "images")
    interface = Interface({"images": images}, ("scores",))
    return _Model(call, interface.inputs, interface.outputs, model.tracked, model.archive), interface


def _golden(inputs: Mapping[str, tf.TensorSpec]) -> dict[str, NDArray[Any]]:
    return {name: _examples(spec, GOLDEN_EXAMPLES) for name, spec in inputs.items()}


def _examples(spec: tf.TensorSpec, count: int) -> NDArray[Any]:
    """Random inputs, the same each time: of a normal distribution, or whole numbers.

    Those of images are pixels; others are 0 or 1, as they may be indices of what is not large.
    """
    random, shape = np.random.default_rng(0), (count, *spec.shape[1:])
    kind = spec.dtype.as_numpy_dtype
    if spec.dtype.is_floating:
        return random.standard_normal(shape).astype(kind)
    if not spec.dtype.is_integer:
        raise BadInput(f"an input of type {spec.dtype.name} has no examples to prove the model with")
    most = min(255, np.iinfo(kind).max) if spec.shape.rank == _IMAGE_RANK else 1
    return random.integers(0, most, shape, endpoint=True).astype(kind)


def _labels(path: Path | None, classes: int) -> tuple[str, ...]:
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

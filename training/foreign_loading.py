"""Loads models that were not made here: a `.keras` archive or a SavedModel, called by named tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from training.errors import BadInput, TrainingError, told
from training.models import residual, resnet, vgg, wide_deep  # noqa: F401 - their classes register themselves
from training.recipes.base import Interface
from training.signatures import Call

IMAGE_RANK = 4
_STRUCTURES = (dict, list, tuple)
_INSTEAD = "where it was made, `model.export(FOLDER)` writes a SavedModel that can be published"


@dataclass(frozen=True)
class ForeignModel:
    """A loaded model of any kind, called by named tensors."""

    call: Call
    inputs: Mapping[str, tf.TensorSpec]
    outputs: tuple[str, ...]
    tracked: Sequence[Any]
    archive: keras.Model | None = None


def load(path: Path) -> ForeignModel:
    """A `.keras` file or a SavedModel folder; raises `BadInput` for what cannot be served as it is."""
    if path.is_dir():
        return _load_saved_model(path)
    model = load_archive(path)
    interface = _keras_interface(model, path)

    def call(inputs: Mapping[str, Any]) -> dict[str, Any]:
        return interface.call(model, inputs)

    return ForeignModel(call, interface.inputs, interface.outputs, _resources(model), model)


def load_archive(path: Path) -> keras.Model:
    """Loads a `.keras` file, without running any code that it may carry."""
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
            reason = (
                f"it needs the {unknown[1]} {unknown[2]}, which is not registered here; name the module that"
                f" registers it (`--import MODULE`), or, {_INSTEAD}"
            )
        else:
            reason = told(error)
        raise BadInput(f"{path} cannot be loaded: {reason}") from error


def _resources(model: keras.Model) -> list[Any]:
    """What a session must restore: variables, and the lookup tables of layers."""
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
        with refusing(path, "does not say what shape it takes"):
            shape = (model.get_build_config() or {}).get("input_shape")
        if not isinstance(shape, (list, tuple)) or isinstance(shape[0], (list, tuple)):
            raise BadInput(
                f"{path} does not say what shape it takes; build it on one input before saving it, or,"
                f" {_INSTEAD}"
            )
        specs = {"inputs": tf.TensorSpec((None, *shape[1:]), tf.float32, "inputs")}
    _check_shapes(specs, path)
    with refusing(path, "cannot be run on examples"):
        probe = model(
            _argument({name: random_inputs(spec, 1) for name, spec in specs.items()}), training=False
        )
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
                f"{path} takes inputs of any size ({name} {spec.shape}); only the first dimension may be"
                " open; give it a size, as in keras.Sequential([keras.Input((224, 224, 3)), model])"
            )
        if spec.shape[0] is not None:
            raise BadInput(
                f"{path} takes batches of {spec.shape[0]} only ({name} {spec.shape});"
                " the first dimension must be open"
            )


def _argument(inputs: Mapping[str, Any]) -> Any:
    return dict(inputs) if len(inputs) > 1 else next(iter(inputs.values()))


def _load_saved_model(path: Path) -> ForeignModel:
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

    return ForeignModel(call, inputs, tuple(sorted(function.structured_outputs)), [loaded])


def _to_serve(path: Path) -> Any:
    """The part of a SavedModel for serving; it may have another graph, for training."""
    try:
        return tf.saved_model.load(str(path))
    except ValueError as error:
        if not re.search("there are [1-9][0-9]* MetaGraphs", str(error)):
            raise
        return tf.saved_model.load(str(path), tags=["serve"])


def random_inputs(spec: tf.TensorSpec, count: int) -> NDArray[Any]:
    """Random inputs, the same each time: normally distributed, or whole numbers.

    Whole numbers for images are pixels; others are 0 or 1, since they may be indices into something small.
    """
    random, shape = np.random.default_rng(0), (count, *spec.shape[1:])
    kind = spec.dtype.as_numpy_dtype
    if spec.dtype.is_floating:
        return random.standard_normal(shape).astype(kind)
    if not spec.dtype.is_integer:
        raise BadInput(f"an input of type {spec.dtype.name} has no examples to prove the model with")
    most = min(255, np.iinfo(kind).max) if spec.shape.rank == IMAGE_RANK else 1
    return random.integers(0, most, shape, endpoint=True).astype(kind)


@contextmanager
def refusing(path: Path, what: str) -> Iterator[None]:
    """Whatever a model raises, whose layers may be anyone's code, becomes `BadInput`: `what` it cannot do."""
    try:
        yield
    except (TrainingError, MemoryError):
        raise
    except Exception as error:
        raise BadInput(f"{path} {what}: {told(error)}") from error

"""TensorFlow Serving's API as the gateway speaks it, over HTTP and gRPC alike: names, states and texts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serving import protos, tensors
from serving.catalog import Catalog
from serving.errors import InvalidInput, NotFound
from serving.model_version import ModelVersion
from serving.prediction import ModelRef

SIGNATURE_DEF = "signature_def"
DEFAULT_SIGNATURE = "serving_default"
_STATES = {name: number for number, name in protos.MODEL_VERSION_STATES.items()}


def ref_of(spec: Any) -> ModelRef:
    """The model and version that a ModelSpec asks for."""
    choice = spec.WhichOneof("version_choice")
    if choice == "version":
        return ModelRef(spec.name or None, spec.version.value)
    return ModelRef(spec.name or None, label=spec.version_label)


@contextmanager
def their_words(ref: ModelRef) -> Iterator[None]:
    """Report a missing model, version or label as TensorFlow Serving does: its clients look for that.

    There an unknown label is INVALID_ARGUMENT, hence an InvalidInput.
    """
    try:
        yield
    except NotFound as error:
        if error.label:
            text = f"Unrecognized servable version label: {error.label}"
            raise InvalidInput(text, stage=error.stage) from error
        name = ref.name or ""
        asked = f"Latest({name})" if ref.version is None else f"Specific({name}, {ref.version})"
        raise NotFound(f"Servable not found for request: {asked}", stage=error.stage) from error


def check_signature_name(name: str) -> None:
    """Refuse signatures that are not for serving: a SavedModel's own, such as `__saved_model_init_op`.

    A replica answers INTERNAL to one, which would count against the replica.

    Raises:
        InvalidInput: it is one of these; worded as for a missing signature.
    """
    if name.startswith("__"):
        raise InvalidInput(
            f'Serving signature name: "{name[:100]}" not found in signature def', stage="routing"
        )


def check_shapes(model: ModelVersion, request: Any) -> None:
    """Refuse a PredictRequest whose tensors cannot be the signature's inputs.

    TensorFlow does not check what is fed against the signature, and kernels may crash the whole process on a
    shape that the graph was not made for: no caller's request may take replicas down.

    Raises:
        InvalidInput: a tensor has a shape that the signature does not take.
    """
    signature = model.signatures.get(request.model_spec.signature_name or DEFAULT_SIGNATURE)
    if signature is None:  # for the replica to refuse, in its own words
        return
    for name, tensor in request.inputs.items():
        if name not in signature.inputs or signature.inputs[name].tensor_shape.unknown_rank:
            continue  # an unknown input likewise
        taken = [dim.size for dim in signature.inputs[name].tensor_shape.dim]
        given = [dim.size for dim in tensor.tensor_shape.dim]
        if tensor.tensor_shape.unknown_rank or not tensors.fits(taken, given):
            raise InvalidInput(
                f'input "{name}" has shape {given[:16]}; the signature takes {taken} (-1: any size)',
                stage="routing",
            )


def input_types(model: ModelVersion, signature_name: str) -> dict[str, int]:
    """The inputs of a signature (empty: the default one): alias -> `tensorflow.DataType`.

    Raises:
        InvalidInput: there is no such signature.
    """
    name = signature_name or DEFAULT_SIGNATURE
    check_signature_name(name)
    signature = model.signatures.get(name)
    if signature is None:
        raise InvalidInput(f'Serving signature name: "{name}" not found in signature def', stage="routing")
    return {alias: info.dtype for alias, info in signature.inputs.items()}


def status_response(catalog: Catalog, ref: ModelRef) -> Any:
    """A GetModelStatusResponse: a model's versions, each by its furthest state on any replica, highest first.

    Raises:
        NotFound: no such model, or no such version of it.
        Unavailable: no replica can be asked.
    """
    name = ref.name or ""
    states = {}
    if name in catalog.names():
        states = {each.version: each for each in reversed(catalog.heard_states(name))}
    if ref.version is not None:
        if ref.version not in states:
            raise NotFound(f"Could not find version {ref.version} of model {name}", stage="routing")
        states = {ref.version: states[ref.version]}
    if not states:
        raise NotFound(f"Could not find any versions of model {name}", stage="routing")
    response = protos.GetModelStatusResponse()
    for version, found in states.items():
        added = response.model_version_status.add(version=version, state=_STATES[found.state])
        added.status.error_code = found.error_code
        added.status.error_message = found.error or ""
    return response

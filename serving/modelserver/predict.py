"""Predict: a `PredictRequest` run through a signature, as the original's `predict_util.cc` does it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import tensorflow as tf

from serving import protos, tensors
from serving.errors import InvalidInput
from serving.modelserver.manager import Model, Servable
from serving.modelserver.servable import data_type_of
from serving.modelserver.signature import Signature, TensorInfo
from serving.modelserver.status import Code, StatusError, failed_precondition, invalid_argument

DEFAULT_SIGNATURE = "serving_default"
PREDICT_METHOD = "tensorflow/serving/predict"
CLASSIFY_METHOD = "tensorflow/serving/classify"
REGRESS_METHOD = "tensorflow/serving/regress"


@dataclass(frozen=True)
class PredictOptions:
    """How Predict answers.

    Attributes:
        check_method_names: refuse signatures for anything but predict, classify and regress.
        as_content: answer with `tensor_content` instead of the typed fields.
    """

    check_method_names: bool = True
    as_content: bool = False


def joined(names: Iterable[str]) -> str:
    """`{a,b}`, as the original prints a set."""
    return "{" + ",".join(sorted(names)) + "}"


def predict(model: Model, request: Any, options: PredictOptions) -> Any:
    """The `PredictResponse` to `request`; raises StatusError in the original's words."""
    asked = request.model_spec
    name = asked.signature_name or DEFAULT_SIGNATURE
    signature = model.servable.signatures.get(name)
    if signature is None:
        raise failed_precondition(f'Serving signature key "{name}" not found.')
    if options.check_method_names:
        check_method(signature.method_name)
    inputs = request.inputs
    check_inputs_count(signature, inputs)
    feeds = feeds_of(signature, inputs)
    outputs = run(model.servable, signature, feeds, request.output_filter)
    response = protos.PredictResponse()
    spec = response.model_spec
    spec.name = asked.name
    spec.signature_name = name
    spec.version.value = model.version
    for alias, array in outputs.items():
        fill_tensor(response.outputs[alias], array, as_content=options.as_content)
    return response


def check_method(method_name: str) -> None:
    """Refuse a signature that was not made to be served."""
    known = (PREDICT_METHOD, CLASSIFY_METHOD, REGRESS_METHOD)
    if method_name not in known:
        raise StatusError(
            Code.INTERNAL,
            f"Expected prediction signature method_name to be one of {{{', '.join(known)}}}. "
            f"Was: {method_name}",
        )


def check_inputs_count(signature: Signature, given: Mapping[str, Any]) -> None:
    """Refuse more inputs than the signature has, or fewer if none has a default."""
    has, needs = len(given), len(signature.inputs)
    if has > needs or (has < needs and not signature.defaults):
        extra, missing = given.keys() - signature.inputs.keys(), signature.inputs.keys() - given.keys()
        raise invalid_argument(
            f"input size does not match signature: {has}!={needs} len({joined(given)}) != "
            f"len({joined(signature.inputs)}). Sent extra: {joined(extra)}. "
            f"Missing but required: {joined(missing)}."
        )


def feeds_of(signature: Signature, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Tensor name -> value, from the request and the signature's defaults."""
    feeds = {}
    used = 0
    for alias, info in signature.inputs.items():
        if alias in given:
            used += 1
            feeds[info.name] = array = parse(alias, given[alias])
            check_shape(alias, info, array.shape)
        elif alias in signature.defaults:
            feeds[info.name] = parse(alias, signature.defaults[alias])
        else:
            raise invalid_argument(
                f"Signature input alias: {alias}(feed name: {info.name}) not found in request and no default "
                f"value provided. Inputs expected to be in the request {joined(given)}, or default input "
                f"alias set: {joined(signature.defaults)}"
            )
    if used < len(given):
        known, sent = joined(given.keys() & signature.inputs.keys())[1:-1], joined(given)[1:-1]
        raise invalid_argument(
            f"Inputs contains invalid name. Used request inputs: {known}, request input: {sent}"
        )
    # The original's session refuses every such call, even if the values are the same.
    if signature.fed_twice is not None:
        raise invalid_argument(f'Endpoint "{signature.fed_twice}" fed more than once.')
    return feeds


def check_shape(alias: str, taken: TensorInfo, given: tuple[int, ...]) -> None:
    """Refuse a value whose shape the signature does not take.

    The original leaves this to the kernels, some of which end the whole process on a shape that the graph
    was not made for (one image without its batch dimension into a fused convolution, for one).
    """
    sizes = taken.sizes
    if sizes is not None and not tensors.fits(sizes, given):
        raise invalid_argument(
            f"input {alias} has shape {list(given)}; the signature takes {list(sizes)} (-1: any size)"
        )


def parse(alias: str, proto: Any) -> np.ndarray:
    """The array of one input, in the numpy type that TensorFlow uses for it."""
    try:
        bits = tensors.from_proto(proto, raw=True)
    except InvalidInput as error:
        raise invalid_argument(f"tensor parsing error: {alias}: {error.message}") from error
    own = _numpy_dtype(proto.dtype)
    return bits if bits.dtype == own else bits.view(own)


@cache
def _numpy_dtype(data_type: int) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(tf.as_dtype(data_type).as_numpy_dtype)
    return dtype


def fill_tensor(proto: Any, array: np.ndarray, *, as_content: bool) -> None:
    """Write one output into its TensorProto."""
    if array.dtype.kind in "OSU" or array.dtype.isbuiltin == 1:
        tensors.fill_proto(proto, array, as_content=as_content)
        return
    data_type = data_type_of(array.dtype)
    bits = array.view(tensors.bits_dtype(data_type))
    tensors.fill_proto(proto, bits, as_content=as_content, data_type=data_type)


def run(
    servable: Servable, signature: Signature, feeds: Mapping[str, np.ndarray], output_filter: Sequence[str]
) -> dict[str, np.ndarray]:
    """Run a signature: alias -> value, of the outputs that are asked for (none named: all)."""
    if output_filter:
        aliases = chosen_outputs(signature, output_filter)
        fetches = sorted({signature.outputs[alias].name for alias in aliases})
    else:
        aliases, fetches = signature.output_aliases, signature.output_names
    values = dict(zip(fetches, servable.run(feeds, fetches), strict=True))
    return {alias: values[signature.outputs[alias].name] for alias in aliases}


def chosen_outputs(signature: Signature, output_filter: Sequence[str]) -> list[str]:
    """The aliases that are asked for; raises StatusError for unknown ones and repetitions."""
    seen: list[str] = []
    for alias in output_filter:
        if alias not in signature.outputs:
            raise invalid_argument(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in the set "
                f"{joined(signature.outputs)}."
            )
        if alias in seen:
            raise invalid_argument(f"duplicate output tensor alias: {alias}")
        seen.append(alias)
    return seen

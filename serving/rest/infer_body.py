"""The bodies of `…/infer`: JSON, with tensors inside it or as bytes after it.

Sources: the Open Inference Protocol, "Inference"; Triton's binary tensor data extension.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from serving.errors import InvalidInput
from serving.model_version import ModelVersion
from serving.open_inference import RAW_ONLY, InferRequest, Tensor, from_raw, from_values, outputs_of, to_raw

HEADER_LENGTH = "inference-header-content-length"


@dataclass(frozen=True, slots=True)
class InferBody:
    """A parsed request: what to infer, its id, and which outputs are wanted as bytes.

    `binary` has the choice of each output that makes one, `binary_by_default` is for the rest.
    """

    request: InferRequest
    id: str | None
    binary: Mapping[str, bool]
    binary_by_default: bool


def parse(body: bytes, header_length: str | None) -> InferBody:
    """Read a request's body.

    Args:
        body: the JSON, and after it the bytes of binary tensors.
        header_length: how long the JSON is, as the header says; None: all of the body.

    Raises:
        InvalidInput: what is wrong, and where.
    """
    size = len(body) if header_length is None else _header_length(header_length, len(body))
    asked = json_object(memoryview(body)[:size])
    parameters = _member(asked, "parameters", dict, {})
    id_ = _member(asked, "id", str, None)
    outputs = [_output(each) for each in _member(asked, "outputs", list, [])]
    request = InferRequest(
        inputs=_inputs(_member(asked, "inputs", list, []), memoryview(body)[size:]),
        outputs={name: _classes(name, given) for name, given in outputs},
        signature_name=_member(parameters, "signature_name", str, ""),
    )
    return InferBody(
        request,
        id_,
        {name: given["binary_data"] is True for name, given in outputs if "binary_data" in given},
        parameters.get("binary_data_output") is True,
    )


def json_object(data: bytes | memoryview) -> dict[str, Any]:
    """The JSON object in a body; raises InvalidInput if there is none."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidInput("the body is not a JSON object")
    return value


def _header_length(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19 and int(text) <= most):
        raise InvalidInput(f'Inference-Header-Content-Length is "{text[:100]}"; the body has {most} bytes')
    return int(text)


def _member(holder: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = holder.get(name, default)
    if value is not None and not isinstance(value, kind):
        words: dict[type, str] = {dict: "an object", list: "an array", str: "a string"}
        raise InvalidInput(f'"{name}" is not {words[kind]}')
    return default if value is None else value


def _inputs(given: Sequence[Any], raw: memoryview) -> list[Tensor]:
    """The input tensors; those with a `binary_data_size` take their bytes off `raw` in their order."""
    found, position = [], 0
    for index, each in enumerate(given):
        if not isinstance(each, dict) or not isinstance(each.get("name"), str):
            raise InvalidInput(f"inputs[{index}] is not an object with a name")
        name, datatype, shape = each["name"], each.get("datatype"), each.get("shape")
        if not isinstance(datatype, str):
            raise InvalidInput(f'"{name}" has no datatype')
        if not isinstance(shape, list) or not all(type(size) is int for size in shape):
            raise InvalidInput(f'the shape of "{name}" is not an array of whole numbers')
        size = _member(each, "parameters", dict, {}).get("binary_data_size")
        if size is None:
            found.append(from_values(name, datatype, shape, _flat(name, each.get("data"))))
            continue
        if type(size) is not int or not 0 <= size <= len(raw) - position:
            raise InvalidInput(
                f'binary_data_size of "{name}" is {str(size)[:100]}; {len(raw) - position} bytes are left'
            )
        found.append(from_raw(name, datatype, shape, raw[position : position + size]))
        position += size
    if position != len(raw):
        raise InvalidInput(f"{len(raw) - position} bytes after the JSON belong to no input")
    return found


def _flat(name: str, data: Any) -> list[Any]:
    """The elements of a tensor, which may be nested as its shape is; row-major."""
    if not isinstance(data, list):
        raise InvalidInput(f'"{name}" has neither an array of data nor a binary_data_size')
    while data and all(type(each) is list for each in data):
        data = [inner for each in data for inner in each]
    if any(isinstance(each, list | dict) for each in data):
        raise InvalidInput(f'the data of "{name}" are ragged or hold objects')
    return list(data)


def _output(each: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(each, dict) or not isinstance(each.get("name"), str):
        raise InvalidInput("an output that is asked for is not an object with a name")
    return each["name"], _member(each, "parameters", dict, {})


def _classes(name: str, parameters: Mapping[str, Any]) -> int:
    count = parameters.get("classification", 0)
    if type(count) is not int or count < 0:
        raise InvalidInput(f'classification of "{name}" is a whole number')
    return count


def render(response: Any, asked: InferBody, model: ModelVersion) -> tuple[bytes, int | None]:
    """The body of an answer, and how long its JSON is if bytes follow it.

    Args:
        response: the PredictResponse.
        asked: the request.
        model: the version that answered.
    """
    outputs, raw = [], []
    for tensor in outputs_of(response, asked.request, model):
        shown = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.array.shape)}
        binary = asked.binary.get(tensor.name, asked.binary_by_default) or tensor.datatype in RAW_ONLY
        if binary:
            raw.append(to_raw(tensor))
            outputs.append({**shown, "parameters": {"binary_data_size": len(raw[-1])}})
        else:
            outputs.append({**shown, "data": _data(tensor)})
    answer = {"model_name": model.name, "model_version": str(model.version), "outputs": outputs}
    if asked.id is not None:
        answer["id"] = asked.id
    content = orjson.dumps(answer)
    return b"".join((content, *raw)), len(content) if raw else None


def _data(tensor: Tensor) -> list[Any]:
    """A tensor's elements for JSON, flat. JSON cannot carry what is not UTF-8 or not finite."""
    flat = tensor.array.ravel()
    try:
        if tensor.datatype == "BYTES":
            return [value.decode() for value in flat.tolist()]
    except UnicodeDecodeError:
        raise InvalidInput(f'output "{tensor.name}" is not text; ask for it with binary_data: true') from None
    if flat.dtype.kind == "f" and not all(map(math.isfinite, flat.tolist())):
        raise InvalidInput(
            f'output "{tensor.name}" has values that are not finite; ask for it with binary_data: true'
        )
    return list(flat.tolist())

"""REST classify and regress bodies -> `Input`: lists of `tf.Example`s, written as plain JSON objects."""

from __future__ import annotations

import math
from typing import Any

from serving import protos
from serving.errors import InvalidInput
from serving.json_document import decode_base64, is_base64, parse_object, quoted, signature_name, type_of
from serving.tensor_json import FLOAT32_MAX

KIND_WORDS = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int64", None: "UNKNOWN"}


def parse_examples(body: bytes, request: Any) -> None:
    """Fill the signature name and the input of a classify or regress request; raises InvalidInput."""
    document = parse_object(body)
    name = signature_name(document)
    if name:
        request.model_spec.signature_name = name
    if "examples" not in document:
        raise InvalidInput(
            f"JSON Value: {quoted(document)} When method is classify, key 'examples' is expected "
            "and was not found"
        )
    examples = document["examples"]
    if not isinstance(examples, list):
        raise InvalidInput(f"JSON Value: {quoted(document)} Expecting 'examples' value to be an list/array")
    if not examples:
        raise InvalidInput(f"JSON Value: {quoted(document)} 'examples' value is an empty array")
    if "context" in document:
        holder = request.input.example_list_with_context
        holder.context.CopyFrom(make_example(document["context"]))
    else:
        holder = request.input.example_list
    holder.examples.extend(make_example(example) for example in examples)


def make_example(value: Any) -> Any:
    """The `tf.Example` that a JSON object of features stands for; raises InvalidInput."""
    if not isinstance(value, dict):
        raise InvalidInput(f"Example must be JSON object but got JSON {type_of(value)}")
    example = protos.Example()
    for name, content in value.items():
        feature = example.features.feature[name]
        for item in content if isinstance(content, list) else [content]:
            _add_value(name, item, feature)
    return example


def _add_value(name: str, value: Any, feature: Any) -> None:
    kind, converted = _feature_value(name, value)
    present = feature.WhichOneof("kind")
    if present not in (None, kind):
        raise InvalidInput(
            f"Unexpected element type in feature: {name} expecting type: {KIND_WORDS[present]}"
        )
    getattr(feature, kind).value.append(converted)


def _feature_value(name: str, value: Any) -> tuple[str, Any]:
    """The list that a value goes to, and the value as it goes there."""
    if is_base64(value):
        return "bytes_list", decode_base64(value)
    if isinstance(value, str):
        return "bytes_list", value.encode()
    if isinstance(value, int):  # booleans are whole numbers, too
        if value >= 2**63:
            raise InvalidInput(f"Feature: {name} has uint64 element. Only int64 is supported.")
        if value < -(2**63):
            raise InvalidInput(f"Feature: {name} has an element beyond int64: {value}")
        return "int64_list", int(value)
    if isinstance(value, float):
        if math.isfinite(value) and abs(value) > FLOAT32_MAX:
            raise InvalidInput(
                f"Cannot convert JSON value: {quoted(value)} to float without loss of precision."
            )
        return "float_list", value
    raise InvalidInput(f"Feature: {name} has element with unexpected JSON type: {type_of(value)}")

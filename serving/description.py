"""What a version says of itself by its `describe` signature: the question, and the answer, checked. Pure.

Anybody's model may have a signature of that name. One that gives something else describes nothing, which
costs only that model its labels or its card.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from serving import protos, tensors
from serving.errors import InvalidInput

DESCRIBE_SIGNATURE = "describe"


def describe_request(name: str, number: int, indices: range, output: str) -> Any:
    """The PredictRequest for one output of `describe`, `label` or `card`, of these classes."""
    request = protos.PredictRequest(output_filter=[output])
    request.model_spec.name = name
    request.model_spec.version.value = number
    request.model_spec.signature_name = DESCRIBE_SIGNATURE
    request.inputs["index"].CopyFrom(tensors.to_proto(np.array(indices, np.int32)))
    return request


def read_card(response: Any) -> Mapping[str, Any]:
    """The card in the answer for one class; raises InvalidInput if it is not a JSON object."""
    (text,) = _texts(response, "card", 1)
    try:
        card = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f'output "card" is not JSON: {error}') from None
    if not isinstance(card, dict):
        raise InvalidInput(f'output "card" is JSON, but no object: {text[:100]!r}')
    return card


def read_labels(response: Any, classes: int) -> tuple[str, ...]:
    """The labels in the answer for every class; raises InvalidInput if there is not one in UTF-8 for each."""
    labels = []
    for index, text in enumerate(_texts(response, "label", classes)):
        try:
            labels.append(text.decode())
        except UnicodeDecodeError:
            raise InvalidInput(f'output "label" of class {index} is not UTF-8: {text[:100]!r}') from None
    return tuple(labels)


def _texts(response: Any, output: str, count: int) -> list[bytes]:
    if output not in response.outputs:
        raise InvalidInput(f'there is no output "{output}"')
    array = tensors.from_proto(response.outputs[output])
    if array.dtype != object or array.shape != (count,):
        kind = "strings" if array.dtype == object else str(array.dtype)
        raise InvalidInput(f'output "{output}" is {kind} {list(array.shape)}; strings [{count}] were due')
    texts: list[bytes] = array.tolist()
    return texts

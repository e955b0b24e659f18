"""Arrays -> TensorFlow Serving's REST answers, laid out to the character as the original lays them out.

The other half of `serving.tensor_json`. The original writes through rapidjson's `PrettyWriter`: four
spaces a level, with the arrays inside a row on one line.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from serving import tensors
from serving.errors import InvalidInput
from serving.tensor_json import Form

INDENT = "    "
BYTES_SUFFIX = "_bytes"
SIGNIFICANT_DIGITS = {np.dtype(np.float32): 9, np.dtype(np.float64): 17}


def error_body(message: str) -> bytes:
    """`{"error": …}`; what is no Unicode in `message` is escaped."""
    return f'{{\n{INDENT}"error": {_string(message)}\n}}'.encode(errors="backslashreplace")


def render_response(response: Any, form: Form) -> bytes:
    """The answer to a predict request, of a PredictResponse; raises as `render_predict` does."""
    outputs = {alias: tensors.from_proto(proto) for alias, proto in response.outputs.items()}
    return render_predict(outputs, form)


def render_predict(outputs: Mapping[str, np.ndarray], form: Form) -> bytes:
    """The answer to a predict request.

    Args:
        outputs: alias -> array; bfloat16 as float32.
        form: row form needs equal 0th dimensions.

    Raises:
        InvalidInput: in the original's words.
    """
    if not outputs:
        raise InvalidInput("Cannot convert empty tensor map to JSON")
    aliases = sorted(outputs)
    values = {alias: _texts(alias, outputs[alias]) for alias in aliases}
    if form is Form.ROW:
        return _render_rows(outputs, values).encode()
    if len(aliases) == 1:
        text = _spread(values[aliases[0]], 1)
    else:
        members = (f"{INDENT * 2}{_string(alias)}: {_spread(values[alias], 2)}" for alias in aliases)
        text = "{\n" + ",\n".join(members) + f"\n{INDENT}}}"
    return f'{{\n{INDENT}"outputs": {text}\n}}'.encode()


def _render_rows(outputs: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> str:
    size = -1
    for alias, array in sorted(outputs.items()):
        if array.ndim == 0:
            raise InvalidInput(f"Tensor name: {alias} has no shape information ")
        if size not in (-1, len(array)):
            raise InvalidInput(
                f"Tensor name: {alias} has inconsistent batch size: {len(array)} expecting: {size}"
            )
        size = len(array)
    if size == 0:
        return f'{{\n{INDENT}"predictions": []\n}}'
    if len(values) == 1:
        (rows,) = values.values()
        text = ", ".join(map(_line, rows))
    else:
        text = ",".join(
            f"\n{INDENT * 2}{{\n"
            + ",\n".join(
                f"{INDENT * 3}{_string(alias)}: {_line(rows[index])}" for alias, rows in values.items()
            )
            + f"\n{INDENT * 2}}}"
            for index in range(size)
        )
    return f'{{\n{INDENT}"predictions": [{text}\n{INDENT}]\n}}'


def _line(value: Any) -> str:
    """Nested lists of texts on one line."""
    return "[" + ", ".join(map(_line, value)) + "]" if isinstance(value, list) else str(value)


def _spread(value: Any, level: int) -> str:
    """Nested lists of texts, a line each."""
    if not isinstance(value, list):
        return str(value)
    if not value:
        return "[]"
    inner = INDENT * (level + 1)
    return "[\n" + ",\n".join(inner + _spread(item, level + 1) for item in value) + f"\n{INDENT * level}]"


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _texts(alias: str, array: np.ndarray) -> Any:
    """The array as nested lists (a scalar as itself) of JSON texts."""
    flat = np.asarray(array).ravel()
    if flat.dtype.kind == "O":
        texts = [_string_value(value, as_bytes=alias.endswith(BYTES_SUFFIX)) for value in flat.tolist()]
    elif flat.dtype.kind == "f":
        texts = decimals(flat)
    elif flat.dtype.kind == "b":
        texts = ["true" if value else "false" for value in flat.tolist()]
    elif flat.dtype.kind in "iu":
        texts = list(map(str, flat.tolist()))
    else:
        raise InvalidInput(f"Failed to write JSON value for tensor type: {flat.dtype.name}")
    holder = np.empty(len(texts), object)
    holder[:] = texts
    return holder.reshape(array.shape).tolist()


def _string_value(value: bytes, *, as_bytes: bool) -> str:
    if as_bytes:
        return f'{{"b64": "{base64.b64encode(value).decode()}"}}'
    return _string(value.decode("utf-8", errors="replace"))


def decimals(array: np.ndarray) -> list[str]:
    """Each number with six significant digits if that is exact, else with enough to round-trip.

    Whole numbers end in `.0`; what is not finite is written as `NaN`, `Infinity` and `-Infinity`.
    """
    if array.dtype not in SIGNIFICANT_DIGITS:
        array = array.astype(np.float32)
    values = array.tolist()
    texts = [f"{value:g}" for value in values]
    with np.errstate(over="ignore"):
        inexact = np.flatnonzero(np.array(texts, np.float64).astype(array.dtype) != array)
    digits = SIGNIFICANT_DIGITS[array.dtype]
    for index in inexact.tolist():
        texts[index] = f"{values[index]:.{digits}g}"
    words = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
    return [text if "." in text or "e" in text else words.get(text) or text + ".0" for text in texts]


def render_classifications(result: Any) -> bytes:
    """The answer to a classify request, of a ClassificationResult: for each example its labels and scores."""
    if not result.classifications:
        raise InvalidInput("Cannot convert empty ClassificationResults to JSON")
    found = [[(each.label, each.score) for each in row.classes] for row in result.classifications]
    scores = iter(decimals(np.array([score for row in found for _, score in row], np.float32)))
    rows = ["[" + ", ".join(f"[{_string(label)}, {next(scores)}]" for label, _ in row) + "]" for row in found]
    return f'{{\n{INDENT}"results": [{", ".join(rows)}\n{INDENT}]\n}}'.encode()


def render_regressions(result: Any) -> bytes:
    """The answer to a regress request, of a RegressionResult."""
    values = [each.value for each in result.regressions]
    if not values:
        raise InvalidInput("Cannot convert empty RegressionResults to JSON")
    return f'{{\n{INDENT}"results": [{", ".join(decimals(np.array(values, np.float32)))}]\n}}'.encode()

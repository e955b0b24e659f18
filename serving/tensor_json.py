"""TensorFlow Serving's REST bodies <-> numpy arrays, without TensorFlow.

What is accepted, what is written and what an error says follow TensorFlow Serving's `json_tensor.cc` and
its REST guide: row form (`instances` -> `predictions`), column form (`inputs` -> `outputs`), `{"b64": …}`
for bytes, `NaN` and `Infinity` both ways, numbers with enough digits to round-trip.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from serving import protos, tensors
from serving.errors import InvalidInput, Unimplemented
from serving.json_document import decode_base64, is_base64, parse_object, quoted, signature_name, type_of

TYPES = {value.name: value.number for value in tensors.DATA_TYPES.values}
INT32 = (-(2**31), 2**31 - 1)
INT_RANGES = {
    TYPES["DT_INT8"]: INT32,  # a narrower type wraps, as in the original
    TYPES["DT_INT16"]: INT32,
    TYPES["DT_INT32"]: INT32,
    TYPES["DT_UINT8"]: INT32,
    TYPES["DT_UINT16"]: INT32,
    TYPES["DT_UINT32"]: (0, 2**32 - 1),
    TYPES["DT_INT64"]: (-(2**63), 2**63 - 1),
    TYPES["DT_UINT64"]: (0, 2**64 - 1),
}
_MOST_LOOSE = 2**14  # values gathered in a list, at eight bytes each, before they go into an array
FLOAT32_MAX = float(np.finfo(np.float32).max)
FLOATS = frozenset(TYPES[name] for name in ("DT_FLOAT", "DT_DOUBLE", "DT_HALF", "DT_BFLOAT16"))


class Form(enum.Enum):
    """The two forms of a predict body."""

    ROW = "row"
    COLUMN = "column"


@dataclass(frozen=True)
class PredictBody:
    """A predict request.

    Attributes:
        signature_name: empty if the body names none.
        form: how the inputs were given, and so how the outputs are to be written.
        inputs: alias -> array; bfloat16 as float32.
        types: alias -> `tensorflow.DataType`, of each input at least.
    """

    signature_name: str
    form: Form
    inputs: dict[str, np.ndarray]
    types: Mapping[str, int]

    def to_request(self) -> Any:
        """The PredictRequest with this signature name and these inputs; which model answers is left open."""
        request = protos.PredictRequest()
        request.model_spec.signature_name = self.signature_name
        for alias, array in self.inputs.items():
            tensors.fill_proto(request.inputs[alias], array, data_type=self.types[alias])
        return request


# --- JSON value -> array --------------------------------------------------------------------------


def to_array(value: Any, data_type: int) -> np.ndarray:
    """The array that nested lists stand for, in numpy's type of `data_type`; bfloat16 as float32.

    Raises:
        InvalidInput: ragged lists, lists more than `tensors.MAX_RANK` deep, or a value of the wrong type.
        Unimplemented: a type that JSON does not carry here.
    """
    flat: list[Any] = []
    shape = _flatten(value, data_type, flat, tensors.MAX_RANK)
    return _array(flat, data_type).reshape(shape)


def _flatten(value: Any, data_type: int, flat: list[Any], most_dimensions: int) -> list[int]:
    """Append the values of nested lists to `flat`; returns their shape, and raises as `to_array` does."""
    shape: list[int] = []
    inner = value
    while isinstance(inner, list):
        shape.append(len(inner))
        if not inner:
            break
        inner = inner[0]
    if len(shape) > most_dimensions:
        raise InvalidInput(
            f"Encountered lists {len(shape)} deep; there may be at most {most_dimensions} dimensions here"
        )
    _fill(value, 0, shape, data_type, flat)
    return shape


def _fill(value: Any, level: int, shape: list[int], data_type: int, flat: list[Any]) -> None:
    """Append the values under `value` to `flat`, checking that they lie as `shape` says."""
    if not isinstance(value, list):
        if level != len(shape):
            raise InvalidInput(
                f"JSON Value: {quoted(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        flat.append(_scalar(value, data_type))
        return
    if level >= len(shape):
        raise InvalidInput(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise InvalidInput(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    if level + 1 == len(shape) and _is_plain(value, data_type):
        flat.extend(value)
        return
    for item in value:
        _fill(item, level + 1, shape, data_type, flat)


def _is_plain(values: list[Any], data_type: int) -> bool:
    """Whether `_scalar` would pass every one of `values` as it is: a quick check of the usual case."""
    kinds = set(map(type, values))
    if kinds == {float} and data_type in FLOATS:
        return data_type == TYPES["DT_DOUBLE"] or (
            all(map(math.isfinite, values)) and max(map(abs, values)) <= FLOAT32_MAX
        )
    if kinds == {int} and (data_type in INT_RANGES or data_type in FLOATS):
        low, high = INT_RANGES.get(data_type, (1 - 2**24, 2**24 - 1))
        return bool(low <= min(values) and max(values) <= high)
    return False


def _scalar(value: Any, data_type: int) -> Any:
    """One value, checked against the type that is wanted."""
    if isinstance(value, dict):
        if data_type != tensors.DT_STRING:
            _refuse_type(value, data_type)
        return decode_base64(value)
    if data_type == tensors.DT_STRING:
        return value.encode() if isinstance(value, str) else _refuse_type(value, data_type)
    if data_type == tensors.DT_BOOL:
        return value if isinstance(value, bool) else _refuse_type(value, data_type)
    if data_type in FLOATS:
        if isinstance(value, bool) or not isinstance(value, int | float):
            _refuse_type(value, data_type)
        return _lossless(value, data_type)
    if data_type in INT_RANGES:
        low, high = INT_RANGES[data_type]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            _refuse_type(value, data_type)
        return value
    raise Unimplemented(f"Conversion of JSON Value: {quoted(value)} to type: {short_name(data_type)}")


def _lossless(value: float, data_type: int) -> float:
    """`value`, unless it is a whole number or a magnitude that the type cannot hold."""
    is_double = data_type == TYPES["DT_DOUBLE"]
    digits, largest = (
        (53, float(np.finfo(np.float64).max)) if is_double else (24, float(np.finfo(np.float32).max))
    )
    if isinstance(value, int):
        fits = abs(value) <= 2**digits - 1 if abs(value) < 2**64 else abs(value) <= largest
    else:
        fits = not math.isfinite(value) or abs(value) <= largest
    if not fits:
        target = "double" if is_double else "float"
        raise InvalidInput(
            f"Cannot convert JSON value: {quoted(value)} to {target} without loss of precision."
        )
    return value


def _refuse_type(value: Any, data_type: int) -> NoReturn:
    raise InvalidInput(
        f"JSON Value: {quoted(value)} Type: {type_of(value)} is not of expected type: {short_name(data_type)}"
    )


def short_name(data_type: int) -> str:
    """`float` for DT_FLOAT: the words of TensorFlow's `DataTypeString`."""
    return tensors.type_name(data_type).removeprefix("DT_").lower()


def _array(flat: list[Any], data_type: int) -> np.ndarray:
    if data_type == tensors.DT_STRING:
        array = np.empty(len(flat), object)
        array[:] = flat
        return array
    if data_type in FLOATS:
        dtype = np.dtype(np.float32) if data_type == tensors.DT_BFLOAT16 else tensors.bits_dtype(data_type)
        with np.errstate(over="ignore"):
            return np.array(flat, np.float64).astype(dtype)
    wide = np.uint64 if data_type == TYPES["DT_UINT64"] else np.int64
    return np.array(flat, wide).astype(tensors.bits_dtype(data_type))


# --- predict --------------------------------------------------------------------------------------

TypesOf = Callable[[str], Mapping[str, int]]


def parse_predict(body: bytes, types_of: TypesOf) -> PredictBody:
    """A predict body.

    Args:
        body: the request's bytes.
        types_of: signature name (empty: the default) -> alias -> `tensorflow.DataType` of its inputs; may
            raise.

    Raises:
        InvalidInput, Unimplemented: in the original's words.
    """
    document = parse_object(body)
    name = signature_name(document)
    types = types_of(name)
    if not types:
        raise InvalidInput(f"Failed to get input map for signature: {name or 'DEFAULT'}")
    if "instances" in document and "inputs" in document:
        raise InvalidInput(
            f"JSON Value: {quoted(document)} Not formatted correctly expecting only one of 'inputs' or "
            "'instances' keys to exist "
        )
    if "instances" in document:
        instances = document["instances"]
        if not isinstance(instances, list):
            raise InvalidInput(f"JSON Value: {quoted(document)} Excepting 'instances' to be an list/array")
        if not instances:
            raise InvalidInput(f"JSON Value: {quoted(document)} No values in 'instances' array")
        return PredictBody(name, Form.ROW, _from_rows(instances, types), types)
    if "inputs" in document:
        return PredictBody(name, Form.COLUMN, _from_columns(document["inputs"], types), types)
    raise InvalidInput("Missing 'inputs' or 'instances' key")


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and not is_base64(value)


def _from_rows(instances: list[Any], types: Mapping[str, int]) -> dict[str, np.ndarray]:
    if not isinstance(instances[0], dict) and len(types) > 1:
        raise InvalidInput(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as "
            "per tensorinfo_map"
        )
    named = _is_named(instances[0])
    columns: dict[str, _Column] = {}
    for index, element in enumerate(instances):
        if _is_named(element) != named:
            wanted, got = ("object", "list") if named else ("value/list", "object")
            raise InvalidInput(f"Expecting {wanted} but got {got} at item {index} of input list")
        cells = element if named else {next(iter(types)): element}
        for alias, cell in cells.items():
            try:
                _column(columns, alias, types).add(cell)
            except (InvalidInput, Unimplemented) as error:
                key = f" key: {alias}" if named else ""
                code = "UNIMPLEMENTED" if isinstance(error, Unimplemented) else "INVALID_ARGUMENT"
                raise InvalidInput(
                    f"Failed to process element: {index}{key} of 'instances' list. "
                    f"Error: {code}: {error.message}"
                ) from error
        if named and cells.keys() != types.keys():
            raise InvalidInput(
                f"Failed to process element: {index} of 'instances' list. JSON object: {quoted(element)} "
                f"keys must be equal to: {','.join(sorted(types))}"
            )
    return {alias: column.array(len(instances)) for alias, column in columns.items()}


def _column(columns: dict[str, _Column], alias: str, types: Mapping[str, int]) -> _Column:
    if alias not in types:
        raise InvalidInput(f"JSON object: does not have named input: {alias}")
    return columns.setdefault(alias, _Column(types[alias]))


class _Column:
    """One input's rows, of one shape.

    Their values are gathered: an array for each row would take a hundred times what a number takes in JSON.
    """

    def __init__(self, data_type: int) -> None:
        self._data_type = data_type
        self._shape: list[int] | None = None
        self._loose: list[Any] = []
        self._packed: list[np.ndarray] = []

    def add(self, row: Any) -> None:
        """Take one more row; raises as `to_array` does, and InvalidInput if its shape is another."""
        shape = _flatten(row, self._data_type, self._loose, tensors.MAX_RANK - 1)  # rows are a dimension, too
        known = self._shape = shape if self._shape is None else self._shape
        if math.prod(known) != math.prod(shape):
            raise InvalidInput(f"Expecting tensor size: {math.prod(known)} but got: {math.prod(shape)}")
        if known != shape:
            raise InvalidInput(f"Expecting shape {_shown(known)} but got: {_shown(shape)}")
        if len(self._loose) >= _MOST_LOOSE:
            self._pack()

    def array(self, rows: int) -> np.ndarray:
        """All of them, [rows, …]."""
        self._pack()
        return np.concatenate(self._packed).reshape([rows, *(self._shape or ())])

    def _pack(self) -> None:
        self._packed.append(_array(self._loose, self._data_type))
        self._loose.clear()


def _shown(shape: list[int]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def _from_columns(value: Any, types: Mapping[str, int]) -> dict[str, np.ndarray]:
    if not _is_named(value):
        if len(types) > 1:
            raise InvalidInput(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as "
                "per tensorinfo_map"
            )
        alias, data_type = next(iter(types.items()))
        return {alias: to_array(value, data_type)}
    for alias in types:
        if alias not in value:
            raise InvalidInput(f"Missing named input: {alias} in 'inputs' object.")
    return {alias: to_array(value[alias], data_type) for alias, data_type in types.items()}

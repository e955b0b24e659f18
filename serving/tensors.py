"""numpy arrays <-> `tensorflow.TensorProto`, without TensorFlow.

A `TensorProto` carries its values in one of two ways, and both are read and written here:

- `tensor_content`: the elements' bytes, little-endian, in row-major order (strings: the lengths as
  varints, then the bytes of all);
- one of the typed `*_val` fields. Fewer values than elements mean that the last one repeats, and none
  means zeros, as in TensorFlow's `Tensor::FromProto`.

A claimed size is never trusted: what is allocated is bounded by what the message carries, apart from
repeated values, which may stand for at most `MAX_FILL_BYTES`.

numpy has no bfloat16, float8, int4 or quantised types. Of these, bfloat16 is read as float32 (which
holds every bfloat16 exactly); the others, and bfloat16 with `raw=True`, as their bits in an integer
array.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from serving import protos
from serving.errors import InvalidInput

MAX_FILL_BYTES = 64 * 2**20
MAX_ELEMENTS = 2**58  # of up to 16 bytes each; beyond this numpy's own arithmetic fails
MAX_RANK = 64  # numpy's own limit; TensorFlow's kernels stop long before

_LENGTH_DELIMITED = 2  # protobuf's wire type of packed numbers

DATA_TYPES = protos.POOL.FindEnumTypeByName("tensorflow.DataType")


class _Kind(NamedTuple):
    """How one `tensorflow.DataType` is laid out: its bits in numpy, in `tensor_content`, and its typed
    field with the key that the field has on the wire when it is packed.
    """

    dtype: np.dtype[Any]
    content: np.dtype[Any]
    field: str
    packed_key: bytes


def _kinds() -> dict[int, _Kind]:
    table = {
        "DT_FLOAT": ("f4", "float_val"),
        "DT_DOUBLE": ("f8", "double_val"),
        "DT_HALF": ("f2", "half_val"),
        "DT_BFLOAT16": ("u2", "half_val"),
        "DT_INT8": ("i1", "int_val"),
        "DT_INT16": ("i2", "int_val"),
        "DT_INT32": ("i4", "int_val"),
        "DT_INT64": ("i8", "int64_val"),
        "DT_UINT8": ("u1", "int_val"),
        "DT_UINT16": ("u2", "int_val"),
        "DT_UINT32": ("u4", "uint32_val"),
        "DT_UINT64": ("u8", "uint64_val"),
        "DT_BOOL": ("?", "bool_val"),
        "DT_STRING": ("O", "string_val"),
        "DT_COMPLEX64": ("c8", "scomplex_val"),
        "DT_COMPLEX128": ("c16", "dcomplex_val"),
        "DT_QINT8": ("i1", "int_val"),
        "DT_QUINT8": ("u1", "int_val"),
        "DT_QINT16": ("i2", "int_val"),
        "DT_QUINT16": ("u2", "int_val"),
        "DT_QINT32": ("i4", "int_val"),
        "DT_INT4": ("i1", "int_val"),
        "DT_UINT4": ("u1", "int_val"),
        "DT_FLOAT8_E5M2": ("u1", "float8_val"),
        "DT_FLOAT8_E4M3FN": ("u1", "float8_val"),
    }
    numbers = {field.name: field.number for field in protos.TensorProto.DESCRIPTOR.fields}
    return {
        DATA_TYPES.values_by_name[name].number: _Kind(
            np.dtype(code),
            np.dtype(code).newbyteorder("<"),
            field,
            _encoded_varint(numbers[field] << 3 | _LENGTH_DELIMITED),
        )
        for name, (code, field) in table.items()
    }


def _encoded_varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


_KINDS = _kinds()
DT_STRING: int = DATA_TYPES.values_by_name["DT_STRING"].number
DT_BFLOAT16: int = DATA_TYPES.values_by_name["DT_BFLOAT16"].number
DT_BOOL: int = DATA_TYPES.values_by_name["DT_BOOL"].number

# The types that numpy has, by their numpy dtype. Types with the same bits but another meaning are
# not here: they must be asked for by name.
_ALIASES = ("DT_BFLOAT16", "DT_Q", "DT_INT4", "DT_UINT4", "DT_FLOAT8")
_BY_DTYPE = {
    kind.dtype: number
    for number, kind in _KINDS.items()
    if not DATA_TYPES.values_by_number[number].name.startswith(_ALIASES)
}


def type_name(data_type: int) -> str:
    """`DT_FLOAT` for 1, and so on; `DataType(99)` for an unknown number."""
    value = DATA_TYPES.values_by_number.get(data_type)
    return value.name if value is not None else f"DataType({data_type})"


def bits_dtype(data_type: int) -> np.dtype[Any]:
    """The numpy dtype that holds one element's bits; raises InvalidInput for types that no array carries."""
    return _kind_of(data_type).dtype


def _kind_of(data_type: int) -> _Kind:
    kind = _KINDS.get(data_type)
    if kind is None:
        raise InvalidInput(f"a tensor of type {type_name(data_type)} cannot be carried in a request")
    return kind


def data_type_of(dtype: np.dtype[Any]) -> int:
    """The `tensorflow.DataType` of a numpy dtype; raises InvalidInput if there is none."""
    if dtype.kind in "SU":
        return DT_STRING
    found = _BY_DTYPE.get(dtype if dtype.isnative else dtype.newbyteorder("="))
    if found is None:
        raise InvalidInput(f"numpy's {dtype} has no TensorFlow type")
    return found


def shape_of(proto: Any) -> tuple[int, ...]:
    """The full shape that `proto` (a TensorProto) claims; raises InvalidInput unless it is a known one."""
    claimed = proto.tensor_shape
    if claimed.unknown_rank:
        raise InvalidInput("the tensor's shape has an unknown rank; a value needs a full shape")
    shape = tuple([dim.size for dim in claimed.dim])
    if min(shape, default=0) < 0:
        raise InvalidInput(f"the tensor's shape {list(shape)} has a negative dimension")
    if len(shape) > MAX_RANK:
        raise InvalidInput(f"the tensor has {len(shape)} dimensions; at most {MAX_RANK} are allowed")
    if is_beyond_memory(shape):
        raise InvalidInput(f"the tensor's shape {list(shape)} is beyond what memory can address")
    return shape


def is_beyond_memory(shape: Sequence[int]) -> bool:
    """Whether a shape, zeros aside, has more elements than numpy allows, even for an empty array."""
    return math.prod([size or 1 for size in shape]) > MAX_ELEMENTS


def fits(taken: Sequence[int], given: Sequence[int]) -> bool:
    """Whether a tensor of shape `given` is one that a signature takes.

    Args:
        taken: the signature's shape, -1 for any size. If it is a column, [-1, 1], a list [n] fits as well:
            TensorFlow Serving's guide calls its own model that way.
        given: the tensor's shape.
    """
    if len(taken) == 2 and taken[1] == 1 and len(given) == 1:
        taken = taken[:1]
    return len(taken) == len(given) and all(
        size in (-1, actual) for size, actual in zip(taken, given, strict=True)
    )


def from_proto(proto: Any, *, raw: bool = False) -> np.ndarray:
    """The array that `proto` (a TensorProto) carries.

    Args:
        proto: a `tensorflow.TensorProto` from `serving.protos`.
        raw: return bfloat16 as its bits (uint16) and not widened to float32.

    Returns:
        An array of the claimed shape; strings as an object array of bytes. With `tensor_content` it is
        a read-only view of the message's bytes; a single repeated value is a read-only broadcast view.

    Raises:
        InvalidInput: the content does not match the shape, or the type cannot be carried.
    """
    shape = shape_of(proto)
    data_type = proto.dtype
    kind = _kind_of(data_type)
    content = proto.tensor_content
    if not content:
        array = _from_values(proto, kind, shape)
    elif data_type == DT_STRING:
        array = _strings_from_content(content, shape)
    else:
        array = _from_content(content, kind, shape)
    if data_type == DT_BFLOAT16 and not raw:
        return _widen_bfloat16(array)
    return array


def _from_content(content: bytes, kind: _Kind, shape: tuple[int, ...]) -> np.ndarray:
    expected = math.prod(shape) * kind.dtype.itemsize
    if len(content) != expected:
        raise InvalidInput(
            f"tensor_content has {len(content)} bytes; shape {list(shape)} of {kind.dtype} needs {expected}"
        )
    if kind.dtype.kind == "b":
        # Any byte but 0 and 1 would make an invalid bool.
        return np.not_equal(np.frombuffer(content, np.uint8), 0).reshape(shape)
    return np.frombuffer(content, kind.content).reshape(shape)


def _strings_from_content(content: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Strings laid out by TensorFlow's `port::EncodeStringList`: all lengths (varints), then all bytes."""
    count = math.prod(shape)
    if count > len(content):
        raise InvalidInput(
            f"tensor_content has {len(content)} bytes, too few for the lengths of {count} strings"
        )
    lengths, position = [], 0
    for _ in range(count):
        length, position = _varint(content, position)
        lengths.append(length)
    if len(content) - position != sum(lengths):
        raise InvalidInput(
            f"tensor_content has {len(content) - position} bytes of strings; "
            f"their lengths add up to {sum(lengths)}"
        )
    array = np.empty(count, object)
    for index, length in enumerate(lengths):
        array[index] = content[position : position + length]
        position += length
    return array.reshape(shape)


def _varint(content: bytes, position: int) -> tuple[int, int]:
    """The base-128 number at `position`, and the position after it."""
    value = 0
    for shift in range(0, 35, 7):
        if position >= len(content):
            break
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise InvalidInput("tensor_content ends inside, or has a malformed, string length")


def _from_values(proto: Any, kind: _Kind, shape: tuple[int, ...]) -> np.ndarray:
    values = _values(proto, kind)
    count = math.prod(shape)
    if len(values) == count:
        return values.reshape(shape)
    if len(values) > count:
        raise InvalidInput(f"{kind.field} has {len(values)} values; shape {list(shape)} takes {count}")
    if count * kind.dtype.itemsize > MAX_FILL_BYTES:
        raise InvalidInput(
            f"{kind.field} has {len(values)} values for the {count} elements of shape {list(shape)}; "
            f"repeated values may fill at most {MAX_FILL_BYTES} bytes"
        )
    if len(values) > 1:
        return np.pad(values, (0, count - len(values)), mode="edge").reshape(shape)
    empty: Any = b"" if proto.dtype == DT_STRING else 0
    single = values[0] if len(values) else empty
    return np.broadcast_to(np.array(single, kind.dtype), shape)


def _values(proto: Any, kind: _Kind) -> np.ndarray:
    """The typed field's values, flat; complex ones are stored as real, imaginary, real, imaginary …"""
    field = getattr(proto, kind.field)
    if kind.field == "string_val":
        array = np.empty(len(field), object)
        array[:] = field
        return array
    if kind.field == "float8_val":
        return np.frombuffer(field, np.uint8)
    if kind.field in ("scomplex_val", "dcomplex_val"):
        if len(field) % 2:
            raise InvalidInput(f"{kind.field} has {len(field)} values; complex numbers come in pairs")
        half = np.float32 if kind.field == "scomplex_val" else np.float64
        return np.fromiter(field, half, len(field)).view(kind.dtype)
    if kind.field == "half_val":
        return np.fromiter(field, np.int32, len(field)).astype(np.uint16).view(kind.dtype)
    if kind.field == "int_val":
        # Values beyond the type wrap, as TensorFlow's own cast does.
        return np.fromiter(field, np.int32, len(field)).astype(kind.dtype)
    return np.fromiter(field, kind.dtype, len(field))


def _widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _round_to_bfloat16(array: np.ndarray) -> np.ndarray:
    """float32 -> the bits of the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32).reshape(array.shape)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), 0x7FC0, rounded).astype(np.uint16)


def to_proto(array: np.ndarray, *, as_content: bool = True, data_type: int | None = None) -> Any:
    """A TensorProto that carries `array`; see `fill_proto`."""
    proto = protos.TensorProto()
    fill_proto(proto, array, as_content=as_content, data_type=data_type)
    return proto


def fill_proto(
    proto: Any, array: np.ndarray, *, as_content: bool = True, data_type: int | None = None
) -> None:
    """Make `proto`, an empty TensorProto, carry `array`.

    Args:
        proto: where to write.
        array: any array with a TensorFlow type; strings as objects (bytes or str), `S` or `U`.
        as_content: use `tensor_content`; otherwise the typed `*_val` field. Strings always go to
            `string_val`.
        data_type: the `tensorflow.DataType` to claim where the dtype does not tell: `DT_BFLOAT16` for
            float32 values (rounded to nearest, ties to even) or for bits in uint16, `DT_QINT8` for int8 …

    Raises:
        InvalidInput: the dtype has no TensorFlow type, or does not hold `data_type`.
    """
    if data_type is None:
        data_type = data_type_of(array.dtype)
    elif data_type == DT_BFLOAT16 and array.dtype.kind == "f":
        array = _round_to_bfloat16(array)
    kind = _KINDS.get(data_type)
    is_text = array.dtype.kind in "OSU"
    if kind is None or (is_text != (data_type == DT_STRING)) or not _holds(array, kind, is_text=is_text):
        raise InvalidInput(f"an array of {array.dtype} does not hold {type_name(data_type)}")
    proto.MergeFromString(_head(data_type, array.shape))
    if is_text:
        proto.string_val.extend(_as_bytes(value) for value in array.ravel().tolist())
    elif as_content:
        proto.tensor_content = array.astype(kind.content, copy=False).tobytes()
    else:
        _set_values(proto, kind, array)


@lru_cache(maxsize=1024)
def _head(data_type: int, shape: tuple[int, ...]) -> bytes:
    """The type and the shape of a TensorProto, serialised. Answers have few, and writing one is slow."""
    proto = protos.TensorProto(dtype=data_type)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    head: bytes = proto.SerializeToString()
    return head


def _holds(array: np.ndarray, kind: _Kind, *, is_text: bool) -> bool:
    return is_text or array.dtype == kind.dtype or array.dtype.newbyteorder("=") == kind.dtype


def _as_bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    raise InvalidInput(f"a string tensor holds bytes or str, not {type(value).__name__}")


def _set_values(proto: Any, kind: _Kind, array: np.ndarray) -> None:
    if kind.dtype.kind in "fc" and kind.field != "half_val":
        # On the wire these fields are their values' bytes; merging those spares a Python object each.
        content = array.astype(kind.content, copy=False).tobytes()
        proto.MergeFromString(kind.packed_key + _encoded_varint(len(content)) + content)
        return
    flat = np.ascontiguousarray(array, kind.dtype).reshape(-1)
    if kind.field == "float8_val":
        proto.float8_val = flat.tobytes()
    else:
        values = flat.view(np.uint16) if kind.field == "half_val" else flat
        getattr(proto, kind.field).extend(values.tolist())

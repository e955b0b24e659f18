"""numpy <-> TensorProto: both encodings, every type, and content that does not match its shape."""

from __future__ import annotations

import resource
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serving import protos, tensors
from serving.errors import InvalidInput

NUMPY_CODES = ["f4", "f8", "f2", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", "c8", "c16"]
DT = {value.name: value.number for value in tensors.DATA_TYPES.values}


def proto(dtype: str, shape: list[int], **values: Any) -> Any:
    made = protos.TensorProto(dtype=DT[dtype], **values)
    for size in shape:
        made.tensor_shape.dim.add(size=size)
    return made


@pytest.mark.parametrize("as_content", [True, False])
@pytest.mark.parametrize("code", NUMPY_CODES)
@given(data=st.data())
@settings(max_examples=20)
def test_every_numpy_type_survives_the_wire(code: str, as_content: bool, data: st.DataObject) -> None:
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    array = data.draw(hnp.arrays(np.dtype(code), shapes))
    message = tensors.to_proto(array, as_content=as_content)
    back = tensors.from_proto(protos.TensorProto.FromString(message.SerializeToString()))
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize(
    "array",
    [
        np.array([[b"a", b""], [b"\xff\x00", b"longer"]], object),
        np.array(["naïve", "x"], object),
        np.array([b"abc", b"d"]),
        np.array("one"),
    ],
)
def test_strings_survive_the_wire(array: np.ndarray) -> None:
    back = tensors.from_proto(tensors.to_proto(array))
    assert back.dtype == object
    assert back.shape == array.shape
    expected = [v.encode() if isinstance(v, str) else v for v in array.ravel().tolist()]
    assert back.ravel().tolist() == expected


def test_strings_in_tensor_content_are_read() -> None:
    message = proto("DT_STRING", [3], tensor_content=b"\x01\x00\xac\x02" + b"a" + b"b" * 300)
    assert tensors.from_proto(message).tolist() == [b"a", b"", b"b" * 300]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (proto("DT_FLOAT", [2, 2], tensor_content=b"\0" * 12), "12 bytes; shape [2, 2] of float32 needs 16"),
        (proto("DT_FLOAT", [2], float_val=[1, 2, 3]), "float_val has 3 values; shape [2] takes 2"),
        (proto("DT_FLOAT", [-1, 2], float_val=[1, 2]), "negative dimension"),
        (proto("DT_FLOAT", [1] * 65, float_val=[1]), "65 dimensions"),
        (proto("DT_FLOAT", [2**62, 2**62]), "beyond what memory can address"),
        (proto("DT_FLOAT", [0, 2**62]), "beyond what memory can address"),
        (proto("DT_COMPLEX64", [1], scomplex_val=[1.0]), "come in pairs"),
        (proto("DT_STRING", [2], tensor_content=b"\x05\x01abc"), "add up to 6"),
        (proto("DT_STRING", [1], tensor_content=b"\xff\xff\xff\xff\xff"), "malformed"),
        (proto("DT_STRING", [2], tensor_content=b"\x81\x81"), "ends inside"),
        (proto("DT_STRING", [9], tensor_content=b"\x01"), "too few"),
        (proto("DT_RESOURCE", [1]), "DT_RESOURCE cannot be carried"),
        (proto("DT_INVALID", [1]), "DT_INVALID cannot be carried"),
        (protos.TensorProto(dtype=1, tensor_shape={"unknown_rank": True}), "unknown rank"),
        (protos.TensorProto(dtype=99), "DataType(99)"),
    ],
)
def test_content_that_does_not_match_says_so(message: Any, text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        tensors.from_proto(message)
    assert text in caught.value.message


def test_repeated_values_fill_as_tensorflow_fills_them() -> None:
    assert tensors.from_proto(proto("DT_FLOAT", [2, 2], float_val=[3])).tolist() == [[3, 3], [3, 3]]
    assert tensors.from_proto(proto("DT_INT32", [4], int_val=[1, 2])).tolist() == [1, 2, 2, 2]
    assert tensors.from_proto(proto("DT_INT32", [2])).tolist() == [0, 0]
    assert tensors.from_proto(proto("DT_STRING", [2])).tolist() == [b"", b""]
    assert tensors.from_proto(proto("DT_UINT8", [1], int_val=[300])).tolist() == [44]


@pytest.mark.parametrize(
    "values", [{}, {"float_val": [1.0]}, {"float_val": [1.0, 2.0]}, {"tensor_content": b"\0"}]
)
def test_a_claim_of_a_gigabyte_in_a_small_message_allocates_nothing(values: dict[str, Any]) -> None:
    message = proto("DT_FLOAT", [2**28], **values)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidInput):
        tensors.from_proto(message)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 50_000


def test_tensor_content_is_read_without_a_copy() -> None:
    array = tensors.from_proto(tensors.to_proto(np.arange(6, dtype=np.float32)))
    assert not array.flags.writeable
    assert not array.flags.owndata


@pytest.mark.parametrize("as_content", [True, False])
def test_bfloat16_is_widened_and_rounded_to_nearest_even(as_content: bool) -> None:
    values = np.array([1.0, -2.5, 3.140625, np.inf, np.nan, 1.00390625, 1.01171875], np.float32)
    message = tensors.to_proto(values, as_content=as_content, data_type=tensors.DT_BFLOAT16)
    assert message.dtype == tensors.DT_BFLOAT16
    back = tensors.from_proto(message)
    np.testing.assert_array_equal(
        back, np.array([1, -2.5, 3.140625, np.inf, np.nan, 1, 1.015625], np.float32)
    )
    bits = tensors.from_proto(message, raw=True)
    assert bits.dtype == np.uint16
    again = tensors.to_proto(bits, as_content=as_content, data_type=tensors.DT_BFLOAT16)
    assert again == message


@pytest.mark.parametrize("as_content", [True, False])
@pytest.mark.parametrize(
    ("dtype", "code"), [("DT_QINT8", "i1"), ("DT_QUINT16", "u2"), ("DT_FLOAT8_E5M2", "u1"), ("DT_INT4", "i1")]
)
def test_types_that_numpy_lacks_travel_as_their_bits(dtype: str, code: str, as_content: bool) -> None:
    bits = np.array([[0, 1], [2, 7]], code)
    message = tensors.to_proto(bits, as_content=as_content, data_type=DT[dtype])
    assert tensors.type_name(message.dtype) == dtype
    np.testing.assert_array_equal(tensors.from_proto(message), bits)


def test_big_endian_and_strided_arrays_are_written_right() -> None:
    array = np.arange(12, dtype=">i4").reshape(3, 4)[:, ::2]
    for as_content in (True, False):
        back = tensors.from_proto(tensors.to_proto(array, as_content=as_content))
        np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize(
    ("array", "data_type", "text"),
    [
        (np.array([np.datetime64("2020-01-01")]), None, "no TensorFlow type"),
        (np.zeros(2, np.float32), DT["DT_INT32"], "does not hold DT_INT32"),
        (np.array([b"x"], object), DT["DT_FLOAT"], "does not hold DT_FLOAT"),
        (np.array([3], object), None, "bytes or str, not int"),
    ],
)
def test_arrays_that_fit_no_type_are_refused(array: np.ndarray, data_type: int | None, text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        tensors.to_proto(array, data_type=data_type)
    assert text in caught.value.message


@pytest.mark.parametrize(
    ("taken", "sent", "does"),
    [
        ([-1, 3], [2, 3], True),
        ([-1, 3], [0, 3], True),
        ([-1, 3], [2, 4], False),
        ([-1, 3], [3], False),
        ([-1, 1], [3], True),  # a list for a column
        ([4, 1], [4], True),
        ([4, 1], [3], False),
        ([-1, 1], [], False),
        ([-1, 1, 1], [3], False),
        ([-1, 8, 8, 1], [8, 8, 1], False),  # kernels end the process on an image without its batch
        ([], [], True),
        ([-1], [2, 1], False),
    ],
)
def test_which_shapes_a_signature_takes(taken: list[int], sent: list[int], does: bool) -> None:
    assert tensors.fits(taken, sent) is does

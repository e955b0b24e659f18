"""REST bodies <-> arrays, without a server: what the conformance tests cannot reach or see."""

from __future__ import annotations

import json
import tracemalloc
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serving import tensor_json, tensor_json_writing
from serving.errors import InvalidInput, Unimplemented
from serving.json_document import quoted
from serving.tensor_json import TYPES, Form, _from_rows


def parse(body: bytes, **types: str) -> tensor_json.PredictBody:
    return tensor_json.parse_predict(body, lambda _: {alias: TYPES[name] for alias, name in types.items()})


def refusal(body: bytes, **types: str) -> str:
    with pytest.raises(InvalidInput) as caught:
        parse(body, **(types or {"x": "DT_FLOAT"}))
    return caught.value.message


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"inputs": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "nested too deeply"),
        (b'{"inputs": ' + b"[" * 100 + b"1" + b"]" * 100 + b"}", "at most 64 dimensions"),
        (b'{"instances": [' + b"[" * 64 + b"1" + b"]" * 64 + b"]}", "at most 63 dimensions"),
        (b'{"inputs": [1], "inputs": [2]}', 'Duplicate key: "inputs"'),
        (b'{"a": 1, "inputs": [1], "inputs": [2]}', 'Duplicate key: "inputs"'),
        (b'{"inputs": ["\xff\xfe"]}', "Invalid encoding in string. at offset: 13"),
        (b'{"inputs": ' + b"9" * 10_000 + b"}", "Number too big"),
        (b'{"inputs": 1e999}', ""),
        (b'{"inputs": [1.0, 1e39]}', "without loss of precision"),
        (b'{"inputs": [1.0, true]}', "Type: True is not of expected type: float"),
        (b'{"inputs": [[1.0], [[2.0]]]}', "unexpected level"),
        (rb'{"inputs": ["\ud800"]}', "The surrogate pair in string is invalid. at offset: 13"),
        (rb'{"inputs": ["\\\udc00\ud800"]}', "The surrogate pair in string is invalid. at offset: 15"),
        (rb'{"inputs": ["\ud83d\ud83d\ude00"]}', "The surrogate pair in string is invalid. at offset: 13"),
        (rb'{"\uD800": 1, "\uD800": 1}', "The surrogate pair in string is invalid. at offset: 2"),
        (
            rb'{"signature_name": "\ud800", "inputs": 1}',
            "The surrogate pair in string is invalid. at offset: 20",
        ),
        (b'{"inputs": [[[1.0]], [2.0]]}', "incorrect level"),
    ],
)
def test_hostile_bodies(body: bytes, text: str) -> None:
    if text:
        assert text in refusal(body)
    else:
        assert parse(body, x="DT_FLOAT").inputs["x"] == np.inf  # as rapidjson reads it


def test_a_large_body_is_quoted_without_being_written_whole() -> None:
    body = b"[" + b"1, " * 300_000 + b"1]"
    value = json.loads(body)
    tracemalloc.start()
    try:
        text = quoted(value)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    assert text.startswith("[\n    1,\n    1,")
    assert len(text) == 1003
    assert refusal(body) == f"JSON Value: {text} Is not object"
    assert quoted({"a": [1, "é"]}) == '{\n    "a": [\n        1,\n        "é"\n    ]\n}'
    assert quoted("x" * 2000) == '"' + "x" * 999 + "..."


def test_rows_take_no_more_than_their_numbers_do() -> None:
    """An array for each row would take 194 bytes for each byte of a body of numbers."""
    many = 50_000
    body = b'{"instances": [' + b"1," * (many - 1) + b"2]}"
    document = json.loads(body)
    tracemalloc.start()
    try:
        rows = _from_rows(document["instances"], {"x": TYPES["DT_FLOAT"]})["x"]
        assert tracemalloc.get_traced_memory()[1] < 20 * many
    finally:
        tracemalloc.stop()
    assert (rows.shape, rows.dtype.name, rows.sum()) == ((many,), "float32", many + 1)
    assert parse(b'{"instances": [[], [], []]}', x="DT_INT8").inputs["x"].shape == (3, 0)
    pairs = parse(b'{"instances": [' + b"[1, 2]," * 20_000 + b"[3, 4]]}", x="DT_INT64").inputs["x"]
    assert pairs.tolist() == [[1, 2]] * 20_000 + [[3, 4]]
    for last, says in (
        (b"[1]", "element: 20000 of 'instances' list. Error: INVALID_ARGUMENT: Expecting tensor size: 2 but"),
        (b"[[1, 2]]", "Expecting shape [2] but got: [1,2]"),
        (b"[1, true]", "Type: True is not of expected type: int64"),
    ):
        assert says in refusal(b'{"instances": [' + b"[1, 2]," * 20_000 + last + b"]}", x="DT_INT64")


@pytest.mark.parametrize("text", ["aGVsbG8=", "aGVsbG8", "aGVs\nbG8=\n", " aG\r\nVs\tbG8 "])
def test_base64_may_have_white_space_and_lack_padding(text: str) -> None:
    body = json.dumps({"inputs": {"b64": text}}).encode()
    assert parse(body, x="DT_STRING").inputs["x"].tolist() == b"hello"


@pytest.mark.parametrize("text", ["aGVsbG8==", "aGVs*G8=", "a", "aGVsbG8\N{NO-BREAK SPACE}", "é"])
def test_what_is_no_base64_is_refused(text: str) -> None:
    body = json.dumps({"inputs": {"b64": text}}).encode()
    assert refusal(body, x="DT_STRING") == "Unable to base64 decode"


def test_whole_surrogate_pairs_and_escaped_backslashes_are_text() -> None:
    body = rb'{"inputs": ["\ud83d\uDE00", "\\ud800", "\ue000"]}'
    assert parse(body, x="DT_STRING").inputs["x"].tolist() == [
        "\U0001f600".encode(),
        rb"\ud800",
        "\ue000".encode(),
    ]


@pytest.mark.parametrize(
    ("data_type", "value", "is_taken"),
    [
        ("DT_INT32", 2**31, False),
        ("DT_INT32", 1.0, False),
        ("DT_UINT8", 300, True),  # wraps, as in the original
        ("DT_INT32", -(2**31), True),
        ("DT_INT32", -(2**31) - 1, False),
        ("DT_INT64", 2**63, False),
        ("DT_INT64", -(2**63), True),
        ("DT_INT64", -(2**63) - 1, False),
        ("DT_UINT64", 2**64 - 1, True),
        ("DT_UINT64", -1, False),
        ("DT_UINT32", -1, False),
        ("DT_UINT32", 2**32 - 1, True),
        ("DT_UINT32", 2**32, False),
        ("DT_FLOAT", 2**24 - 1, True),
        ("DT_FLOAT", 2**24, False),
        ("DT_FLOAT", -(2**24), False),
        ("DT_FLOAT", 2**64, True),
        ("DT_FLOAT", 10**39, False),
        ("DT_DOUBLE", 2**53, False),
        ("DT_DOUBLE", 2**53 - 1, True),
        ("DT_HALF", 1.5, True),
        ("DT_BFLOAT16", 1.5, True),
        ("DT_BOOL", 1, False),
        ("DT_STRING", 1, False),
    ],
)
def test_ranges(data_type: str, value: Any, is_taken: bool) -> None:
    for body in (json.dumps({"inputs": value}), json.dumps({"inputs": [value]})):
        if is_taken:
            assert parse(body.encode(), x=data_type).inputs["x"].size == 1
        else:
            refusal(body.encode(), x=data_type)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"instances": [1]}', "instances is a plain list, but expecting list of objects as multiple input"),
        (b'{"inputs": [1]}', "inputs is a plain value/list, but expecting an object as multiple input"),
        (b'{"instances": [{"a": 1, "b": "x"}]}', "Failed to process element: 0 key: b of 'instances' list. "),
        (b'{"instances": [{"a": 1}]}', "keys must be equal to: a,b"),
        (b'{"instances": [{"a": 1, "b": 1}, 2]}', "Expecting object but got list at item 1 of input list"),
    ],
)
def test_several_inputs_are_named(body: bytes, says: str) -> None:
    assert says in refusal(body, a="DT_FLOAT", b="DT_FLOAT")


def test_of_one_input_all_rows_are_alike() -> None:
    says = "Expecting value/list but got object at item 1 of input list"
    assert refusal(b'{"instances": [1, {"x": 1}]}') == says
    of_no_type = refusal(b'{"instances": [1]}', x="DT_COMPLEX64")
    assert "Failed to process element: 0 of 'instances' list. Error: UNIMPLEMENTED: " in of_no_type


def test_what_is_too_large_for_half_a_float_is_infinite_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parse(b'{"inputs": [1e6]}', x="DT_HALF").inputs["x"].tolist() == [np.inf]


def test_rows_of_the_highest_rank() -> None:
    body = b'{"instances": [' + b"[" * 63 + b"1" + b"]" * 63 + b"]}"
    assert parse(body, x="DT_FLOAT").inputs["x"].ndim == 64


def test_types_that_json_does_not_carry() -> None:
    with pytest.raises(Unimplemented):
        parse(b'{"inputs": [1]}', x="DT_COMPLEX64")
    with pytest.raises(InvalidInput):
        tensor_json_writing.render_predict({"y": np.ones(2, np.complex64)}, Form.ROW)


@pytest.mark.parametrize(("code", "data_type"), [("f4", "DT_FLOAT"), ("f8", "DT_DOUBLE"), ("i8", "DT_INT64")])
@pytest.mark.parametrize("form", list(Form))
@given(data=st.data())
@settings(max_examples=40)
def test_what_is_written_reads_back_exactly(
    code: str, data_type: str, form: Form, data: st.DataObject
) -> None:
    shape = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4)
    elements = None
    if code == "i8":
        elements = st.integers(-(2**63), 2**63 - 1)
    array = data.draw(hnp.arrays(np.dtype(code), shape, elements=elements))
    written = json.loads(tensor_json_writing.render_predict({"y": array}, form))
    back = written["predictions" if form is Form.ROW else "outputs"]
    np.testing.assert_array_equal(np.array(back, code), array)
    if code != "i8":
        body = json.dumps({"inputs": array.tolist()}).encode()
        np.testing.assert_array_equal(parse(body, x=data_type).inputs["x"], array)


def test_layouts_are_the_originals() -> None:
    outputs = {"b": np.array([[1, 2], [3, 4]]), "a": np.array([0.5, 1.0])}
    rows = tensor_json_writing.render_predict(outputs, Form.ROW).decode()
    assert rows == (
        '{\n    "predictions": [\n        {\n            "a": 0.5,\n            "b": [1, 2]\n        },\n'
        '        {\n            "a": 1.0,\n            "b": [3, 4]\n        }\n    ]\n}'
    )
    column = tensor_json_writing.render_predict({"a": outputs["a"]}, Form.COLUMN).decode()
    assert column == '{\n    "outputs": [\n        0.5,\n        1.0\n    ]\n}'
    assert tensor_json_writing.error_body('a "b"').decode() == '{\n    "error": "a \\"b\\""\n}'
    assert json.loads(tensor_json_writing.error_body("\ud800")) == {"error": "\ud800"}
    with pytest.raises(InvalidInput):
        tensor_json_writing.render_predict({}, Form.ROW)
    assert json.loads(tensor_json_writing.render_predict({"y": np.zeros((0, 2))}, Form.ROW)) == {
        "predictions": []
    }

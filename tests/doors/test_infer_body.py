"""Bodies of the Open Inference Protocol, and its messages: tensors in JSON, as bytes behind it, in fields."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from serving import protos, tensors
from serving.errors import InvalidInput
from serving.open_inference import InferRequest, from_raw
from serving.rest.infer_body import parse, render
from serving.rpc.openinference import _parse as parse_message
from tests.doors.inferring import answer_of, model_of


def test_binary_inputs_take_their_bytes_in_their_order() -> None:
    asked = {
        "id": "7",
        "inputs": [
            {"name": "a", "datatype": "UINT8", "shape": [2], "parameters": {"binary_data_size": 2}},
            {"name": "b", "datatype": "FP32", "shape": [2, 1], "data": [[1], [2.5]]},
            {"name": "c", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 7}},
            {"name": "d", "datatype": "INT16", "shape": [1], "parameters": {"binary_data_size": 2}},
        ],
    }
    head = json.dumps(asked).encode()
    body = parse(head + b"\x01\x02" + b"\x03\0\0\0abc" + b"\xff\x7f", str(len(head)))
    given = {each.name: each.array.tolist() for each in body.request.inputs}
    assert given == {"a": [1, 2], "b": [[1.0], [2.5]], "c": [b"abc"], "d": [2**15 - 1]}
    assert body.id == "7"


@pytest.mark.parametrize(
    ("body", "header", "says"),
    [
        ("[]", None, "the body is not a JSON object"),
        ('{"outputs": [3]}', None, "an output that is asked for is not an object with a name"),
        ('{"outputs": [{"name": 3}]}', None, "an output that is asked for is not an object with a name"),
        ('{"inputs": [{"name": 3}]}', None, r"inputs\[0\] is not an object with a name"),
        (
            '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1.5], "data": [1]}]}',
            None,
            'the shape of "x" is not an array of whole numbers',
        ),
        ("{}", "two", 'Inference-Header-Content-Length is "two"; the body has 2 bytes'),
        ("{}", "", 'Inference-Header-Content-Length is ""; the body has 2 bytes'),
        ("{}", "3", 'Inference-Header-Content-Length is "3"; the body has 2 bytes'),
        ("{}", "1" * 5000, "Inference-Header-Content-Length is "),
        ("{} ", "2", "1 bytes after the JSON belong to no input"),
        (
            '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1.5]}]}',
            None,
            "is not an array of whole",
        ),
        ('{"parameters": []}', None, '"parameters" is not an object'),
        ('{"id": 7}', None, '"id" is not a string'),
    ],
)
def test_bodies_that_are_none_say_why(body: str, header: str | None, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        parse(body.encode(), header)


def test_json_alone_may_say_how_long_it_is() -> None:
    assert parse(b"{}", "2").request == InferRequest([])


def test_a_member_that_is_null_is_none() -> None:
    body = parse(b'{"id": null, "parameters": null, "inputs": null, "outputs": null}', None)
    assert (body.id, body.request) == (None, InferRequest([]))


@pytest.mark.parametrize(
    ("second", "says"), [(3, None), (4, "is 4; 3 bytes are left"), (-1, "is -1; 3 bytes")]
)
def test_binary_inputs_take_what_is_left_and_no_more(second: int, says: str | None) -> None:
    sizes = {"a": 2, "b": 0, "c": second}
    inputs = [
        {"name": name, "datatype": "UINT8", "shape": [size], "parameters": {"binary_data_size": size}}
        for name, size in sizes.items()
    ]
    head = json.dumps({"inputs": inputs}).encode()
    if says is None:
        found = parse(head + b"\1\2\3\4\5", str(len(head))).request.inputs
        assert [each.array.tolist() for each in found] == [[1, 2], [], [3, 4, 5]]
        return
    with pytest.raises(InvalidInput, match=f'binary_data_size of "c" {says}'):
        parse(head + b"\1\2\3\4\5", str(len(head)))


def test_an_answer_has_an_id_only_where_the_request_has() -> None:
    for asked in ({}, {"id": ""}, {"id": "7"}):
        content, _ = render(answer_of(a=np.zeros(1, np.float32)), parsed(**asked), model_of())
        assert {name: value for name, value in json.loads(content).items() if name == "id"} == asked


def test_any_byte_but_zero_is_true() -> None:
    found = from_raw("x", "BOOL", [3], b"\0\1\2").array
    assert found.tolist() == [False, True, True]
    assert found.tobytes() == b"\0\1\1", "what is sent on has no other bytes"


@pytest.mark.parametrize(
    "raw", [b"", b"\1\0\0", b"\1\0\0\0", b"\1\0\0\0ab", b"\1\0\0\0a\0\0\0\0", b"\xff" * 5]
)
def test_bytes_that_are_not_one_element_are_refused(raw: bytes) -> None:
    with pytest.raises(InvalidInput, match='"x" is not 1 BYTES elements, each a length'):
        from_raw("x", "BYTES", [1], raw)


def parsed(**asked: Any) -> Any:
    """A request for these outputs, or with these parameters."""
    one = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
    return parse(json.dumps({"inputs": [one], **asked}).encode(), None)


@pytest.mark.parametrize(
    ("asked", "binary"),
    [
        ({}, []),
        ({"parameters": {"binary_data_output": True}}, ["a", "b"]),
        ({"outputs": [{"name": "b", "parameters": {"binary_data": True}}, {"name": "a"}]}, ["b"]),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [{"name": "b"}, {"name": "a", "parameters": {"binary_data": False}}],
            },
            ["b"],
        ),
    ],
    ids=("none", "all", "one", "all-but-one"),
)
def test_outputs_are_bytes_where_that_is_asked_for(asked: dict[str, Any], binary: list[str]) -> None:
    response = answer_of(a=np.array([[0.5, 0.25]], np.float32), b=np.array([[7]], np.int64))
    content, json_length = render(response, parsed(**asked, id="i"), model_of())
    assert (json_length is None) == (not binary)
    told = json.loads(content[:json_length])
    assert (told["id"], told["model_name"], told["model_version"]) == ("i", "m", "3")
    wanted = [each["name"] for each in asked.get("outputs", ())] or ["a", "b"]
    assert [each["name"] for each in told["outputs"]] == wanted
    raw = b"" if json_length is None else content[json_length:]
    as_bytes = {"a": np.array([0.5, 0.25], "<f4").tobytes(), "b": np.array([7], "<i8").tobytes()}
    assert raw == b"".join(as_bytes[each] for each in wanted if each in binary)
    for each in told["outputs"]:
        if each["name"] in binary:
            assert each["parameters"] == {"binary_data_size": 8}
            assert "data" not in each
        else:
            assert each["data"] == ([0.5, 0.25] if each["name"] == "a" else [7])


@pytest.mark.parametrize(
    ("data_type", "datatype", "raw"), [("DT_HALF", "FP16", b"\x00\x3e"), ("DT_BFLOAT16", "BF16", b"\xc0\x3f")]
)
def test_half_precision_is_always_bytes(data_type: str, datatype: str, raw: bytes) -> None:
    response = protos.PredictResponse()
    number = tensors.DATA_TYPES.values_by_name[data_type].number
    response.outputs["h"].CopyFrom(
        tensors.to_proto(from_raw("h", datatype, [1], raw).array, data_type=number)
    )
    content, json_length = render(response, parsed(), model_of())
    assert json_length is not None
    assert json.loads(content[:json_length])["outputs"][0]["datatype"] == datatype
    assert content[json_length:] == raw


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.array([1, np.nan], np.float32), 'output "y" has values that are not finite; ask for it with bin'),
        (np.array([1, -np.inf]), 'output "y" has values that are not finite; ask for it with binary_data'),
        (np.array([b"\xff"], object), 'output "y" is not text; ask for it with binary_data: true'),
    ],
)
def test_what_json_cannot_carry_comes_as_bytes_only(array: np.ndarray, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        render(answer_of(y=array), parsed(), model_of())
    _, json_length = render(answer_of(y=array), parsed(parameters={"binary_data_output": True}), model_of())
    assert json_length is not None


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT16", "int_contents", [-(2**15), 2**15 - 1]),
        ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
        ("UINT8", "uint_contents", [0, 255]),
        ("UINT16", "uint_contents", [0, 2**16 - 1]),
        ("UINT32", "uint_contents", [0, 2**32 - 1]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("FP32", "fp32_contents", [0.5, -1.0]),
        ("FP64", "fp64_contents", [0.1, 1e300]),
        ("BYTES", "bytes_contents", [b"", b"\xff"]),
    ],
)
def test_each_datatype_has_its_field_in_grpc(datatype: str, field: str, values: list[Any]) -> None:
    request = protos.ModelInferRequest()
    given = request.inputs.add(name="x", datatype=datatype, shape=[2, 1])
    getattr(given.contents, field).extend(values)
    (tensor,) = parse_message(request).inputs
    assert (tensor.datatype, tensor.array.ravel().tolist()) == (datatype, values)
    assert tensor.array.shape == (2, 1)
    del getattr(given.contents, field)[:]
    with pytest.raises(InvalidInput, match='"x" has 0 elements'):
        parse_message(request)
    other = "fp32_contents" if field != "fp32_contents" else "fp64_contents"
    getattr(given.contents, other).append(1.0)
    with pytest.raises(InvalidInput, match=f'"x" is {datatype}; its contents are in'):
        parse_message(request)

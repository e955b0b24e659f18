"""The Open Inference Protocol part by part: bodies, signatures, answers, what models say of themselves."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from serving import open_inference, protos, tensors
from serving.errors import InvalidInput
from serving.main import Running
from serving.model_version import ModelVersion
from serving.open_inference import InferRequest, Tensor, classified, from_raw, outputs_of, predict_request
from serving.rest.infer_body import parse, render
from serving.rpc.openinference import _parse as parse_message
from tests.doors.replica import ScriptedReplica
from tests.support.fake_replica import Refusal, running
from tests.support.gateways import gateway_over


def signature(inputs: dict[str, str], outputs: dict[str, str], *, size: int = -1) -> Any:
    """A signature of these tensors, name -> DataType; each of shape [size, 2]."""
    made = protos.SignatureDef()
    for infos, given in ((made.inputs, inputs), (made.outputs, outputs)):
        for name, data_type in given.items():
            infos[name].dtype = tensors.DATA_TYPES.values_by_name[data_type].number
            for each in (size, 2):
                infos[name].tensor_shape.dim.add(size=each)
    return made


FLOATS = {"x": "DT_FLOAT"}
GIVES = {"a": "DT_FLOAT", "b": "DT_INT64"}


def model_of(labels: tuple[str, ...] = (), **signatures: Any) -> ModelVersion:
    return ModelVersion("m", 3, signatures, None, labels)


def floats(name: str = "x") -> Tensor:
    return Tensor(name, "FP32", np.ones((1, 2), np.float32))


def answer_of(**outputs: np.ndarray) -> Any:
    response = protos.PredictResponse()
    for name, array in outputs.items():
        response.outputs[name].CopyFrom(tensors.to_proto(array))
    return response


# --- bodies ---------------------------------------------------------------------------------------


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
        ("{} ", "2", "1 bytes behind the JSON belong to no input"),
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


def test_half_precision_is_always_bytes() -> None:
    content, json_length = render(answer_of(h=np.array([1.5], np.float16)), parsed(), model_of())
    assert json_length is not None
    assert content[json_length:] == np.array([1.5], "<f2").tobytes()


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


# --- which signature, which outputs ----------------------------------------------------------------


def chosen(model: ModelVersion, *inputs: str, name: str = "", outputs: dict[str, int] | None = None) -> str:
    asked = InferRequest([floats(each) for each in inputs], outputs or {}, name)
    return str(predict_request(model, asked).model_spec.signature_name)


def test_the_signature_is_the_one_that_takes_the_inputs() -> None:
    takes_x, takes_y = signature(FLOATS, GIVES), signature({"y": "DT_FLOAT"}, GIVES)
    both = signature({"x": "DT_FLOAT", "y": "DT_FLOAT"}, GIVES)
    model = model_of(
        serving_default=takes_x, other=takes_x, wide=both, one=takes_y, bare=signature({}, GIVES)
    )
    assert chosen(model, "x") == "serving_default"
    assert chosen(model, "y", "x") == "wide"
    assert chosen(model, "x", name="other") == "other"
    assert chosen(model_of(first=takes_y, second=takes_x), "x") == "second"
    with pytest.raises(
        InvalidInput, match=r"the inputs are z; the model takes: one\(y\); other\(x\); serving_"
    ):
        chosen(model, "z")
    with pytest.raises(InvalidInput, match="the inputs are x; the model takes"):
        chosen(model, "x", name="one")
    with pytest.raises(
        InvalidInput, match=r'no signature "bare"; there are: one, other, serving_default, wide'
    ):
        chosen(model, name="bare")
    ambiguous = model_of(serving_default=takes_y, one=takes_x, two=takes_x)
    with pytest.raises(InvalidInput, match="the inputs are x; the model takes"):
        chosen(ambiguous, "x")


def test_outputs_come_in_the_order_that_is_asked_for() -> None:
    response = answer_of(b=np.zeros(1, np.int64), a=np.zeros((1, 2), np.float32))
    names = [each.name for each in outputs_of(response, InferRequest([]), model_of())]
    assert names == ["a", "b"]
    asked = InferRequest([], {"b": 0, "a": 1})
    found = outputs_of(response, asked, model_of())
    assert [(each.name, each.datatype) for each in found] == [("b", "INT64"), ("a", "BYTES")]
    with pytest.raises(InvalidInput, match='output "c" is DT_COMPLEX64: no datatype here'):
        outputs_of(answer_of(c=np.zeros(1, np.complex64)), InferRequest([]), model_of())


def test_numbers_alone_have_classes() -> None:
    counts = np.array([3, 9, 9], np.int32)
    assert classified(Tensor("n", "INT32", counts), 2, ()).array.tolist() == [b"9.000000:1", b"9.000000:2"]
    for tensor in (
        Tensor("n", "FP32", np.array(1.0, np.float32)),
        Tensor("n", "BOOL", np.array([True])),
        Tensor("n", "BF16", np.array([1], np.uint16)),
    ):
        with pytest.raises(InvalidInput, match='output "n" has no scores to find classes by'):
            classified(tensor, 1, ())


# --- what models say of themselves ------------------------------------------------------------------


def test_a_model_is_described_by_its_default_signature_or_else_its_first() -> None:
    given = signature({"x": "DT_FLOAT", "c": "DT_COMPLEX64"}, {"y": "DT_STRING"})
    model = model_of(first=given, second=signature({"z": "DT_FLOAT"}, GIVES))
    assert open_inference.metadata(model, [10, 9]) == {
        "name": "m",
        "versions": ["9", "10"],
        "platform": "tensorflow_savedmodel",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "y", "datatype": "BYTES", "shape": [-1, 2]}],
    }
    config = open_inference.config(model, 32)
    assert config["max_batch_size"] == 32
    assert config["output"] == [{"name": "y", "data_type": "TYPE_STRING", "dims": [2]}]
    assert open_inference.metadata(model_of(), [])["inputs"] == []


def test_a_model_has_batches_only_if_every_tensor_has() -> None:
    mixed = signature(FLOATS, {})
    mixed.outputs["y"].CopyFrom(signature({}, {"y": "DT_FLOAT"}, size=1).outputs["y"])
    config = open_inference.config(model_of(serving_default=mixed), 32)
    assert config["max_batch_size"] == 0
    assert config["input"][0]["dims"] == [-1, 2]
    assert config["output"][0]["dims"] == [1, 2]


class Loading(ScriptedReplica):
    """Has versions in every state."""

    async def status(self, request: Any) -> Any:
        """Version 1 serves; the others are on their way, or failed."""
        if request.model_spec.name != "digits":
            raise Refusal(grpc.StatusCode.NOT_FOUND, "Could not find any versions")
        response = protos.GetModelStatusResponse()
        for version, state in enumerate(("AVAILABLE", "START", "LOADING", "UNLOADING", "END"), 1):
            response.model_version_status.add(version=version, state=state)
        response.model_version_status[4].status.error_message = "out of memory"
        return response


@pytest.fixture
async def loading() -> AsyncIterator[tuple[Running, httpx.AsyncClient]]:
    """A gateway over it."""
    async with running(Loading()) as fake, gateway_over(fake) as both:
        yield both


async def test_versions_that_are_not_there_yet_are_not_ready(
    loading: tuple[Running, httpx.AsyncClient],
) -> None:
    _, client = loading
    for version in (1, 2, 3, 4, 5):
        answer = await client.get(f"/v2/models/digits/versions/{version}/ready")
        assert (answer.status_code, answer.json()["ready"]) == ((200, True) if version == 1 else (503, False))
    assert (await client.get("/v2/models/digits/versions/6/ready")).status_code == 404
    every = (await client.post("/v2/repository/index")).json()
    assert [(each["version"], each["state"], each["reason"]) for each in every] == [
        ("1", "READY", ""),
        ("2", "LOADING", ""),
        ("3", "LOADING", ""),
        ("4", "UNAVAILABLE", ""),
        ("5", "UNAVAILABLE", "out of memory"),
    ]
    ready = await client.post("/v2/repository/index", json={"ready": True})
    assert [each["version"] for each in ready.json()] == ["1"]

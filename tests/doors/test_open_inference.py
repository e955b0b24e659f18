"""The Open Inference Protocol beyond what clients send on a good day: types, raw bytes, and refusals."""

from __future__ import annotations

import json
import struct
from typing import Any

import grpc
import grpc.aio
import httpx
import numpy as np
import pytest
from google.protobuf import descriptor_pb2
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serving import open_inference, protos, tensors
from serving.errors import InvalidInput, SluiceError
from serving.main import Running
from serving.model_version import ModelVersion
from serving.open_inference import DATA_TYPES, InferRequest, Tensor, classified, from_raw, from_values, to_raw
from serving.rest.infer_body import parse

INFER = "/v2/models/digits/infer"


def image_input(**changes: Any) -> dict[str, Any]:
    return {"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": [200] * 64} | changes


def test_messages_are_tritons() -> None:
    """Every field of ours is there in Triton's, under the same number, with the same type and label."""
    from tritonclient.grpc import model_config_pb2, service_pb2

    theirs = {
        **service_pb2.DESCRIPTOR.message_types_by_name,
        **model_config_pb2.DESCRIPTOR.message_types_by_name,
    }

    def fields(descriptor: Any) -> dict[str, tuple[Any, ...]]:
        proto = descriptor_pb2.DescriptorProto()
        descriptor.CopyToProto(proto)

        def walk(message: Any, path: str) -> dict[str, tuple[Any, ...]]:
            found = {
                f"{path}.{field.name}": (field.number, field.label, field.type, field.type_name)
                for field in message.field
            }
            for nested in message.nested_type:
                found |= walk(nested, f"{path}.{nested.name}")
            return found

        return walk(proto, proto.name)

    checked = 0
    for file in ("inference/grpc_service.proto", "inference/model_config.proto"):
        for name, message in protos.POOL.FindFileByName(file).message_types_by_name.items():
            ours = fields(message)
            assert ours.items() <= fields(theirs[name]).items(), name
            checked += len(ours)
    assert checked > 80
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    for method in protos.POOL.FindServiceByName(protos.OPEN_INFERENCE).methods:
        their = service.methods_by_name[method.name]
        assert method.input_type.full_name == their.input_type.full_name
        assert method.output_type.full_name == their.output_type.full_name


NUMERIC = {name: tensors.bits_dtype(number) for name, number in DATA_TYPES.items() if name != "BYTES"}


@given(st.data())
def test_raw_tensors_round_trip(data: st.DataObject) -> None:
    datatype = data.draw(st.sampled_from(sorted(NUMERIC)))
    array = data.draw(hnp.arrays(NUMERIC[datatype], hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)))
    again = from_raw("x", datatype, array.shape, to_raw(Tensor("x", datatype, array)))
    assert again.array.tobytes() == array.tobytes()
    assert again.array.shape == array.shape


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_raw_bytes_round_trip(values: list[bytes]) -> None:
    array = np.empty(len(values), object)
    array[:] = values
    raw = to_raw(Tensor("x", "BYTES", array))
    assert from_raw("x", "BYTES", [len(values)], raw).array.tolist() == values
    assert raw == b"".join(struct.pack("<I", len(value)) + value for value in values)


@given(st.binary(max_size=300), st.none() | st.text(max_size=5) | st.integers(0, 300).map(str))
def test_any_bytes_are_parsed_or_refused(body: bytes, header: str | None) -> None:
    assert parsed_or_refused(body, header)


def parsed_or_refused(body: bytes, header: str | None) -> bool:
    try:
        return isinstance(parse(body, header).request, InferRequest)
    except SluiceError as error:
        return bool(error.message)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["name", "datatype", "shape", "data", "parameters", "binary_data_size", "x"]), inner
    ),
    max_leaves=12,
)  # fmt: skip


@given(
    st.fixed_dictionaries(
        {"inputs": st.lists(JSON_VALUES, max_size=2)},
        optional={"id": JSON_VALUES, "parameters": JSON_VALUES, "outputs": JSON_VALUES},
    )
)
def test_any_json_is_parsed_or_refused(value: Any) -> None:
    assert parsed_or_refused(json.dumps(value).encode(), None)


@pytest.mark.parametrize(
    ("datatype", "shape", "values", "says"),
    [
        ("FP33", [1], [1], "is not a datatype; there are: BOOL, UINT8"),
        ("FP16", [1], [1.0], "only as raw bytes"),
        ("UINT8", [2], [1], "has 1 elements; shape \\[2\\] takes 2"),
        ("UINT8", [1], [256], "beyond the range of UINT8"),
        ("UINT8", [1], [-1], "beyond the range of UINT8"),
        ("UINT8", [1], [1.5], "not all of its elements are"),
        ("UINT8", [1], [True], "not all of its elements are"),
        ("INT64", [1], [2**63], "beyond the range of INT64"),
        ("FP32", [1], [1e39], "beyond the range of FP32"),
        ("BOOL", [1], [1], "not all of its elements are"),
        ("BYTES", [1], [1], "not all of its elements are strings"),
        ("FP32", [-1], [], "is none that a tensor can have"),
        ("FP32", [1] * (tensors.MAX_RANK + 1), [1.0], "is none that a tensor can have"),
        ("FP32", [0, 2**63], [], "is none that a tensor can have"),
        ("FP32", [0, 2**62, 2**62], [], "is none that a tensor can have"),
        ("BYTES", [0, 2**63], [], "is none that a tensor can have"),
    ],
)
def test_values_that_do_not_fit_are_refused(datatype: str, shape: Any, values: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        from_values("x", datatype, shape, values)


def test_numbers_come_as_they_are() -> None:
    assert from_values("x", "INT64", [2], [2**63 - 1, -(2**63)]).array.tolist() == [2**63 - 1, -(2**63)]
    assert from_values("x", "UINT64", [1], [2**64 - 1]).array.tolist() == [2**64 - 1]
    assert from_values("x", "FP32", [3], [float("inf"), 1e-50, 3]).array.tolist() == [float("inf"), 0, 3]
    assert from_values("x", "FP32", [0, 4], []).array.shape == (0, 4)
    assert from_values("x", "FP64", [], [0.1]).array.shape == ()
    assert from_values("x", "FP32", [1] * tensors.MAX_RANK, [1]).array.ndim == tensors.MAX_RANK
    assert from_values("x", "BYTES", [2], ["ü", b"\xff"]).array.tolist() == ["ü".encode(), b"\xff"]


@pytest.mark.parametrize("raw", [b"", b"1234567", b"123456789"])
def test_raw_bytes_are_as_many_as_the_shape_needs(raw: bytes) -> None:
    with pytest.raises(InvalidInput, match=rf'"x" has {len(raw)} bytes; shape \[2\] of FP32 needs 8'):
        from_raw("x", "FP32", [2], raw)


@pytest.mark.parametrize("datatype", ["FP32", "BOOL", "BYTES"])
@pytest.mark.parametrize("shape", [[0, 2**63], [0, 2**62, 2**62]])
def test_a_shape_beyond_memory_is_refused_even_if_it_is_empty(datatype: str, shape: list[int]) -> None:
    with pytest.raises(InvalidInput, match="is none that a tensor can have"):
        from_raw("x", datatype, shape, b"")


def test_classes_are_the_best_of_the_last_dimension() -> None:
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25]], np.float32)
    found = classified(Tensor("scores", "FP32", scores), 2, ("a", "b", "c"))
    assert found.array.tolist() == [
        [b"0.700000:1:b", b"0.200000:2:c"],
        [b"0.500000:0:a", b"0.250000:1:b"],
    ]
    bare = classified(Tensor("scores", "FP32", scores[0]), 9, ("a",))
    assert bare.array.tolist() == [b"0.700000:1", b"0.200000:2", b"0.100000:0"]
    with pytest.raises(InvalidInput, match="no scores"):
        classified(Tensor("x", "BYTES", np.array([b"a"], object)), 1, ())


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        (
            {"inputs": [], "parameters": {"signature_name": "__saved_model_init_op"}},
            400,
            'no signature "__saved_model_init_op"',
        ),
        ({"inputs": []}, 400, "the inputs are none; the model takes: describe"),
        ({"inputs": [image_input(), image_input()]}, 400, "given more than once"),
        ({"inputs": [image_input(datatype="FP32", data=[1.0] * 64)]}, 400, "is FP32; the model takes UINT8"),
        ({"inputs": [image_input(data=None)]}, 400, "neither an array of data nor a binary_data_size"),
        ({"inputs": [image_input(data=[[1], 2])]}, 400, "ragged"),
        ({"inputs": [image_input(shape="8")]}, 400, "not an array of whole numbers"),
        ({"inputs": [image_input(datatype=None)]}, 400, "has no datatype"),
        ({"inputs": [image_input(parameters={"binary_data_size": 64})]}, 400, "0 bytes are left"),
        ({"inputs": [3]}, 400, "inputs[0] is not an object with a name"),
        ({"inputs": 3}, 400, '"inputs" is not an array'),
        ({"inputs": [image_input()], "id": 3}, 400, '"id" is not a string'),
        ({"inputs": [image_input()], "outputs": [{"name": "x"}]}, 400, 'no output "x"; there are: scores'),
        ({"inputs": [image_input()], "parameters": {"signature_name": "x"}}, 400, 'no signature "x"'),
        (
            {
                "inputs": [image_input()],
                "outputs": [{"name": "scores", "parameters": {"classification": -1}}],
            },
            400,
            "is a whole number",
        ),
    ],
)
async def test_bad_requests_say_what_is_wrong(
    client: httpx.AsyncClient, change: dict[str, Any], status: int, says: str
) -> None:
    answer = await client.post(INFER, json=change)
    assert answer.status_code == status
    assert says in answer.json()["error"]


async def test_the_header_and_the_bytes_must_agree(client: httpx.AsyncClient) -> None:
    head = json.dumps(
        {"inputs": [image_input(data=None, parameters={"binary_data_size": 64})]}
    ).encode()  # fmt: skip
    name = "inference-header-content-length"
    good = await client.post(INFER, content=head + bytes(64), headers={name: str(len(head))})
    assert good.status_code == 200, good.text
    for body, length in (
        (head + bytes(65), len(head)),
        (head + bytes(63), len(head)),
        (head, 10**9),
        (head, -1),
    ):
        bad = await client.post(INFER, content=body, headers={name: str(length)})
        assert bad.status_code == 400
        assert bad.json()["error"]


async def test_versions_readiness_and_index(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v2/models/digits/versions/1/ready")).json() == {
        "name": "digits",
        "ready": True,
    }
    assert (await client.get("/v2/models/digits/versions/9/ready")).status_code == 404
    for path in ("/v1/models/digits/versions/{}", "/v2/models/digits/versions/{}/ready"):
        # The first is the time in nanoseconds, which some number their versions by.
        for version, status in (("1764453600000000000", 404), (2**63 - 1, 404), (2**63, 400), ("x", 400)):
            assert (await client.get(path.format(version))).status_code == status
    assert (await client.get("/v2/models/nope/ready")).status_code == 404
    index = await client.post("/v2/repository/index", json={"ready": True})
    assert index.json() == [{"name": "digits", "version": "1", "state": "READY", "reason": ""}]
    assert (await client.post("/v2/repository/index", json={"ready": 1})).status_code == 400
    assert (await client.get("/v2/health/live/")).status_code == 200


async def test_grpc_takes_contents_or_raw_but_not_both(up: Running) -> None:
    async with grpc.aio.insecure_channel(up.grpc_address) as channel:
        call: Any = channel.unary_unary(
            f"/{protos.OPEN_INFERENCE}/ModelInfer",
            request_serializer=protos.ModelInferRequest.SerializeToString,
            response_deserializer=protos.ModelInferResponse.FromString,
        )
        request = protos.ModelInferRequest(model_name="digits", id="7")
        tensor = request.inputs.add(name="images", datatype="UINT8", shape=[1, 8, 8, 1])
        tensor.contents.uint_contents.extend([200] * 64)
        response = await call(request)
        assert (response.id, response.model_version) == ("7", "1")
        scores = np.frombuffer(response.raw_output_contents[0], "<f4")
        assert scores.argmax() == 7
        for spoil, says in (
            (lambda: request.raw_input_contents.extend([b"", b""]), "1 inputs and 2 raw_input_contents"),
            (
                lambda: request.raw_input_contents.append(bytes(64)),
                '"images" has contents, and raw_input_cont',
            ),
            (lambda: tensor.contents.fp32_contents.append(1), "its contents are in"),
            (lambda: setattr(tensor, "datatype", "X"), "is not a datatype"),
        ):
            spoil()
            with pytest.raises(grpc.aio.AioRpcError, match=says) as refused:
                await call(request)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            del request.raw_input_contents[:]


async def test_grpc_takes_a_whole_number_of_classes(up: Running) -> None:
    async with grpc.aio.insecure_channel(up.grpc_address) as channel:
        call: Any = channel.unary_unary(
            f"/{protos.OPEN_INFERENCE}/ModelInfer",
            request_serializer=protos.ModelInferRequest.SerializeToString,
            response_deserializer=protos.ModelInferResponse.FromString,
        )
        request = protos.ModelInferRequest(model_name="digits", raw_input_contents=[bytes([200]) * 64])
        request.inputs.add(name="images", datatype="UINT8", shape=[1, 8, 8, 1])
        wanted = request.outputs.add(name="scores").parameters["classification"]
        wanted.int64_param = 2
        (scores,) = (await call(request)).outputs
        assert (scores.datatype, list(scores.shape)) == ("BYTES", [1, 2])
        for field, value in (("string_param", "2"), ("double_param", 2.0), ("int64_param", -1)):
            setattr(wanted, field, value)
            with pytest.raises(grpc.aio.AioRpcError, match='classification of "scores" is a whole number'):
                await call(request)


async def test_a_stream_goes_on_behind_a_request_that_fails_and_says_which_it_was(up: Running) -> None:
    async with grpc.aio.insecure_channel(up.grpc_address) as channel:
        stream: Any = channel.stream_stream(
            f"/{protos.OPEN_INFERENCE}/ModelStreamInfer",
            request_serializer=protos.ModelInferRequest.SerializeToString,
            response_deserializer=protos.ModelStreamInferResponse.FromString,
        )
        requests = []
        for id_, model in (("1", "digits"), ("2", "nope"), ("3", "digits")):
            request = protos.ModelInferRequest(model_name=model, id=id_)
            request.inputs.add(name="images", datatype="UINT8", shape=[1, 8, 8, 1])
            request.raw_input_contents.append(bytes([200]) * 64)
            requests.append(request)
        answers = [each async for each in stream(iter(requests))]
    assert [each.infer_response.id for each in answers] == ["1", "2", "3"]
    nothing, failed = "", 'model "nope" is not configured; there are: digits'
    assert [each.error_message for each in answers] == [nothing, failed, nothing]
    assert [len(each.infer_response.outputs) for each in answers] == [1, 0, 1]


async def test_a_gateway_that_shuts_down_is_live_but_not_ready(
    up: Running, client: httpx.AsyncClient
) -> None:
    assert (await client.get("/v2/health/ready")).status_code == 200
    up.gateway.draining = True
    ready = await client.get("/v2/health/ready")
    assert (ready.status_code, ready.json()) == (503, {"ready": False})
    assert (await client.get("/v2/health/live")).json() == {"live": True}
    request, response = protos.methods(protos.OPEN_INFERENCE)["ServerReady"]
    async with grpc.aio.insecure_channel(up.grpc_address) as channel:
        call: Any = channel.unary_unary(
            f"/{protos.OPEN_INFERENCE}/ServerReady",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        assert not (await call(request())).ready


def test_a_model_without_batches_says_so() -> None:
    signature = protos.SignatureDef()
    signature.inputs["x"].dtype = 1
    signature.inputs["x"].tensor_shape.dim.add(size=3)
    signature.outputs["y"].dtype = 7
    model = ModelVersion("m", 1, {"serving_default": signature}, None, ())
    found = open_inference.config(model, 32)
    assert found["max_batch_size"] == 0
    assert found["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [3], "format": "FORMAT_NONE"}]
    assert found["output"] == [{"name": "y", "data_type": "TYPE_STRING", "dims": []}]

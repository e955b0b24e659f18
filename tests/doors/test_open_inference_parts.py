"""The Open Inference Protocol part by part: signatures, answers, what models say of themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import httpx
import numpy as np
import pytest

from serving import open_inference, protos
from serving.errors import InvalidInput
from serving.images import ImageSpec
from serving.main import Running
from serving.model_version import ImageSignature, ModelVersion
from serving.open_inference import InferRequest, Tensor, classified, outputs_of, predict_request
from tests.doors.inferring import FLOATS, GIVES, answer_of, floats, model_of, signature
from tests.doors.replica import ScriptedReplica
from tests.support.fake_replica import Refusal, running
from tests.support.gateways import gateway_over

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
    with pytest.raises(InvalidInput, match="the inputs are x; the model takes"):
        chosen(model_of(serving_default=takes_y, one=takes_x, two=takes_y), "x", name="two")
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


def test_a_model_is_described_by_its_default_signature() -> None:
    model = model_of(a=signature({"z": "DT_FLOAT"}, GIVES), serving_default=signature(FLOATS, GIVES))
    assert [each["name"] for each in open_inference.metadata(model, [1])["inputs"]] == ["x"]


def test_without_a_default_signature_the_first_by_name_is_described_and_run() -> None:
    """In whatever order a replica tells them, and not the one without inputs that every SavedModel has."""
    bare, x, y = (signature(given, GIVES) for given in ({}, FLOATS, {"y": "DT_FLOAT"}))
    model = model_of(__saved_model_init_op=bare, e=y, d=x, c=x)
    assert [each["name"] for each in open_inference.metadata(model, [1])["inputs"]] == ["x"]
    assert [each["name"] for each in open_inference.config(model, 1)["input"]] == ["x"]
    assert chosen(model, "x") == "c"


def test_the_images_of_a_classifier_are_told_from_its_other_inputs() -> None:
    image = ImageSignature("x", "a", ImageSpec(8, 8, 1), 10)
    given = signature(FLOATS | {"y": "DT_FLOAT"}, GIVES)
    model = ModelVersion("m", 3, {"serving_default": given}, image, ())
    formats = {each["name"]: each["format"] for each in open_inference.config(model, 1)["input"]}
    assert formats == {"x": "FORMAT_NHWC", "y": "FORMAT_NONE"}


def test_a_model_is_described_by_the_types_that_the_protocol_has() -> None:
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


async def test_over_grpc_what_is_not_there_is_not_ready_and_no_error(
    loading: tuple[Running, httpx.AsyncClient],
) -> None:
    """As in Triton: clients poll until it is ready, and an error would end their loop."""
    up, _ = loading
    asked, answered = protos.methods(protos.OPEN_INFERENCE)["ModelReady"]
    async with grpc.aio.insecure_channel(up.grpc_address) as channel:
        ready: Any = channel.unary_unary(
            f"/{protos.OPEN_INFERENCE}/ModelReady",
            request_serializer=asked.SerializeToString,
            response_deserializer=answered.FromString,
        )
        for spec, is_ready in (
            ({"name": "digits"}, True),
            ({"name": "digits", "version": "1"}, True),
            ({"name": "digits", "version": "2"}, False),
            ({"name": "digits", "version": "6"}, False),
            ({"name": "nope"}, False),
        ):
            assert (await ready(asked(**spec))).ready == is_ready, spec
        with pytest.raises(grpc.aio.AioRpcError, match='"x" is not a version'):
            await ready(asked(name="digits", version="x"))

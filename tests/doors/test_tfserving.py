"""TensorFlow Serving's API through the gateway, over HTTP and gRPC: routed, and otherwise as the original."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import httpx
import numpy as np
import pytest

from serving import protos, tensors
from serving.main import Running
from serving.routing import Split
from tests.doors.replica import ScriptedReplica
from tests.support.gateways import counted

MODEL = "/v1/models/digits"
NOPE = "/v1/models/nope"
MISSING = "Servable not found for request: "
NO_SIGNATURE = 'Serving signature name: "x" not found in signature def'
PIXELS = np.full((2, 8, 8, 1), 200, np.uint8)


class Stub:
    """Calls any method of any service."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    async def __call__(self, service: str, method: str, message: Any, **options: Any) -> Any:
        request, response = protos.methods(service)[method]
        assert isinstance(message, request)
        call: Any = self._channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        return await call(message, **options)

    async def predict(self, method: str, message: Any, **options: Any) -> Any:
        return await self(protos.PREDICTION_SERVICE, method, message, **options)


@pytest.fixture
async def stub(up: Running) -> AsyncIterator[Stub]:
    async with grpc.aio.insecure_channel(up.grpc_address) as channel:
        yield Stub(channel)


def predict_request(**spec: Any) -> Any:
    request = protos.PredictRequest()
    request.model_spec.name = spec.pop("name", "digits")
    for name, value in spec.items():
        if name == "version":
            request.model_spec.version.value = value
        else:
            setattr(request.model_spec, name, value)
    request.inputs["images"].CopyFrom(tensors.to_proto(PIXELS))
    return request


async def fails(stub: Stub, method: str, message: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.predict(method, message)
    return refused.value.code(), str(refused.value.details())


async def test_predict_is_routed_and_names_its_version(
    replica: ScriptedReplica, up: Running, stub: Stub
) -> None:
    replica.versions = {"digits": {1, 2}}
    await up.catalog.refreshed()
    response = await stub.predict("Predict", predict_request())
    assert response.model_spec.version.value == 2
    assert tensors.from_proto(response.outputs["scores"]).shape == (2, 10)
    response = await stub.predict("Predict", predict_request(version=1))
    assert response.model_spec.version.value == 1
    replica.labels = {"canary": 1}
    response = await stub.predict("Predict", predict_request(version_label="canary"))
    assert response.model_spec.version.value == 1
    assert replica.predicted_versions == [2, 1, 1]
    served = {"protocol": "grpc", "model": "digits", "outcome": "ok"}
    assert counted(up, "sluice_requests_total", version="2", **served) == 1
    assert counted(up, "sluice_requests_total", version="1", **served) == 2


async def test_missing_things_are_named_in_the_originals_words(stub: Stub) -> None:
    assert await fails(stub, "Predict", predict_request(name="nope")) == (
        grpc.StatusCode.NOT_FOUND,
        "Servable not found for request: Latest(nope)",
    )
    assert await fails(stub, "Predict", predict_request(version=9)) == (
        grpc.StatusCode.NOT_FOUND,
        "Servable not found for request: Specific(digits, 9)",
    )
    assert await fails(stub, "Predict", predict_request(version_label="x")) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "Unrecognized servable version label: x",
    )
    assert (await fails(stub, "Predict", protos.PredictRequest()))[1] == "Missing ModelSpec"
    internal = await fails(stub, "Predict", predict_request(signature_name="__saved_model_init_op"))
    assert internal[0] is grpc.StatusCode.INVALID_ARGUMENT
    long_name = await fails(stub, "Predict", predict_request(name="é" * 6000))
    assert long_name[0] is grpc.StatusCode.NOT_FOUND
    assert long_name[1].endswith("...TRUNCATED")
    assert len(long_name[1].encode()) < 1100


@pytest.mark.parametrize("shape", [(1, 0), (2, 9, 8, 1), (8, 8, 1), (1, 8, 8, 1, 1), ()])
async def test_shapes_that_could_end_a_replica_never_reach_it(
    replica: ScriptedReplica, stub: Stub, client: httpx.AsyncClient, shape: tuple[int, ...]
) -> None:
    request = predict_request()
    request.inputs["images"].CopyFrom(tensors.to_proto(np.zeros(shape, np.uint8)))
    code, text = await fails(stub, "Predict", request)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "the signature takes [-1, 8, 8, 1]" in text
    answer = await client.post(MODEL + ":predict", json={"inputs": np.zeros(shape, np.uint8).tolist()})
    assert answer.status_code == 400
    assert replica.batches == []


async def test_examples_are_classified_and_regressed(stub: Stub) -> None:
    for method, request in (
        ("Classify", protos.ClassificationRequest()),
        ("Regress", protos.RegressionRequest()),
    ):
        request.model_spec.name = "digits"
        request.input.example_list.examples.add()
        response = await stub.predict(method, request)
        assert response.model_spec.version.value == 1
    assert response.result.regressions[0].value == 2.5


async def test_multi_inference_is_of_one_model(stub: Stub) -> None:
    request = protos.message("tensorflow.serving.MultiInferenceRequest")()
    code, says = await fails(stub, "MultiInference", request)
    assert (code, says) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "Inference request must contain at least one task.",
    )
    for method in ("tensorflow/serving/regress", "tensorflow/serving/classify"):
        request.tasks.add(method_name=method).model_spec.name = "digits"
    response = await stub.predict("MultiInference", request)
    assert [each.model_spec.version.value for each in response.results] == [1, 1]
    request.tasks[1].model_spec.signature_name = "__saved_model_init_op"
    assert "not found in signature def" in (await fails(stub, "MultiInference", request))[1]
    request.tasks[1].model_spec.signature_name = ""
    request.tasks.add().model_spec.name = "other"
    assert "must access the same model" in (await fails(stub, "MultiInference", request))[1]


async def test_the_first_task_of_a_multi_inference_says_which_version(
    replica: ScriptedReplica, up: Running, stub: Stub
) -> None:
    replica.versions = {"digits": {1, 2}}
    await up.catalog.refreshed()
    request = protos.message("tensorflow.serving.MultiInferenceRequest")()
    for _ in range(2):
        request.tasks.add(method_name="tensorflow/serving/regress").model_spec.name = "digits"
    request.tasks[0].model_spec.version.value = 1
    response = await stub.predict("MultiInference", request)
    assert [each.model_spec.version.value for each in response.results] == [1, 1]
    request.tasks[1].model_spec.version.value = 2
    assert (
        "tasks[1] and the first task are for different versions"
        in (await fails(stub, "MultiInference", request))[1]
    )


async def test_calls_that_say_nothing_sensible_are_counted(up: Running, stub: Stub) -> None:
    """As they are over HTTP: who runs a gateway sees what its callers do wrong."""
    several = protos.message("tensorflow.serving.MultiInferenceRequest")()
    for service, method, message in (
        (protos.PREDICTION_SERVICE, "Predict", protos.PredictRequest()),
        (protos.PREDICTION_SERVICE, "Predict", predict_request(signature_name="__init")),
        (protos.PREDICTION_SERVICE, "MultiInference", several),
        (protos.MODEL_SERVICE, "GetModelStatus", protos.GetModelStatusRequest()),
        (protos.IMAGE_CLASSIFICATION, "Classify", protos.ClassifyRequest(version=-1)),
        (protos.IMAGE_CLASSIFICATION, "Classify", protos.ClassifyRequest(version=1, label="x")),
        (protos.OPEN_INFERENCE, "ModelInfer", protos.ModelInferRequest(model_version="x")),
        (
            protos.OPEN_INFERENCE,
            "ModelReady",
            protos.methods(protos.OPEN_INFERENCE)["ModelReady"][0](version="x"),
        ),
    ):
        before = counted(up, "sluice_requests_total", protocol="grpc", outcome="invalid-input")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub(service, method, message)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        after = counted(up, "sluice_requests_total", protocol="grpc", outcome="invalid-input")
        assert after == before + 1, method


async def test_metadata_and_status(stub: Stub) -> None:
    request = protos.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "digits"
    response = await stub.predict("GetModelMetadata", request)
    found = protos.SignatureDefMap()
    response.metadata["signature_def"].Unpack(found)
    assert "serving_default" in found.signature_def
    assert response.model_spec.version.value == 1
    asked = protos.GetModelStatusRequest()
    asked.model_spec.name = "digits"
    status = await stub(protos.MODEL_SERVICE, "GetModelStatus", asked)
    assert [(each.version, each.state) for each in status.model_version_status] == [(1, 30)]
    asked.model_spec.version.value = 4
    with pytest.raises(grpc.aio.AioRpcError, match="Could not find version 4 of model digits"):
        await stub(protos.MODEL_SERVICE, "GetModelStatus", asked)


async def test_a_question_for_metadata_is_no_evidence_in_a_rollout(up: Running, stub: Stub) -> None:
    """Clients ask once, and then only predict: counted as calls, these would dilute a version's evidence."""
    steering = up.gateway.steering
    steering.set_split("digits", Split(1), None)
    request = protos.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "digits"
    await stub.predict("GetModelMetadata", request)
    assert "calls/1" not in steering.counts("digits")
    await stub.predict("Predict", predict_request())
    assert steering.counts("digits")["calls/1"] == 1


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        (":predict", {"instances": PIXELS.tolist()}, "predictions"),
        (":PREDICT", {"inputs": PIXELS.tolist()}, "outputs"),
        ("/versions/1:Predict", {"instances": [{"images": PIXELS[0].tolist()}]}, "predictions"),
        (":classify", {"examples": [{"x": [1.0]}]}, "results"),
        (":regress", {"examples": [{"x": 1}]}, "results"),
        ("/labels/stable:regress", {"examples": [{"x": 1}], "context": {"y": "z"}}, "results"),
    ],
)
@pytest.mark.parametrize("content_type", ["application/json", "application/x-www-form-urlencoded", ""])
async def test_rest_takes_the_originals_bodies(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], says: str, content_type: str
) -> None:
    import json

    headers = {"content-type": content_type} if content_type else {}
    answer = await client.post(MODEL + path, content=json.dumps(body), headers=headers)
    assert answer.status_code == 200, answer.text
    assert list(answer.json()) == [says]
    assert answer.headers["content-type"] == "application/json"


async def test_classify_takes_numbers_that_only_the_original_knows(client: httpx.AsyncClient) -> None:
    """The image API has the same path, and JSON without them."""
    taken = await client.post(MODEL + ":classify", content='{"examples": [{"x": [NaN, -Infinity]}]}')
    assert (taken.status_code, list(taken.json())) == (200, ["results"]), taken.text
    refused = await client.post(MODEL + ":classify", content='{"examples": NaN}')
    assert (refused.status_code, list(refused.json())) == (400, ["error"])
    for images in ('{"images": [NaN]}', '{"examples": [NaN'):
        answer = await client.post(MODEL + ":classify", content=images)
        assert (answer.status_code, answer.json()["type"]) == (400, "urn:sluice:problem:invalid-input")
        assert answer.json()["detail"].startswith("the body is not JSON: ")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "error"),
    [
        ("POST", f"{NOPE}:predict", '{"instances": [1]}', 404, MISSING + "Latest(nope)"),
        ("POST", f"{MODEL}/versions/9:predict", "{}", 404, MISSING + "Specific(digits, 9)"),
        ("POST", f"{MODEL}/labels/x:predict", "{}", 400, "Unrecognized servable version label: x"),
        ("POST", f"{MODEL}:predict", "[", 400, "JSON Parse error: Invalid value. at offset: 1"),
        ("POST", f"{MODEL}:predict", "", 400, "JSON Parse error: The document is empty"),
        ("POST", f"{MODEL}:predict", '{"signature_name": "x", "instances": [1]}', 400, NO_SIGNATURE),
        ("POST", f"{MODEL}:predict", "{}", 400, "Missing 'inputs' or 'instances' key"),
        ("GET", f"{MODEL}/versions/9", "", 404, "Could not find version 9 of model digits"),
        ("GET", NOPE, "", 404, "Could not find any versions of model nope"),
        ("GET", f"{NOPE}/metadata", "", 404, MISSING + "Latest(nope)"),
        ("GET", f"{MODEL}:predict/x", "", 400, f"Malformed request: GET {MODEL}:predict/x"),
    ],
)
async def test_rest_refuses_in_the_originals_words(
    client: httpx.AsyncClient, method: str, path: str, body: str, status: int, error: str
) -> None:
    answer = await client.request(method, path, content=body)
    assert (answer.status_code, answer.json()) == (status, {"error": error})


async def test_rest_status_and_metadata_look_like_the_originals(client: httpx.AsyncClient) -> None:
    status = (await client.get(MODEL)).json()
    assert status == {
        "model_version_status": [
            {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        ]
    }
    assert (await client.get(MODEL + "/versions/1")).json() == status
    assert (await client.get(MODEL + "/labels/any")).json() == status
    metadata = (await client.get(MODEL + "/versions/1/metadata")).json()
    assert metadata["model_spec"] == {"name": "digits", "signature_name": "", "version": "1"}
    signatures = metadata["metadata"]["signature_def"]["signature_def"]
    assert signatures["serving_default"]["inputs"]["images"]["dtype"] == "DT_UINT8"


async def test_upstream_refusals_keep_their_kind(replica: ScriptedReplica, client: httpx.AsyncClient) -> None:
    from tests.support.fake_replica import Refusal

    async def refuse(_request: Any) -> None:
        raise Refusal(code, "scripted")

    replica.before_predict = refuse
    for code, status in (
        (grpc.StatusCode.INVALID_ARGUMENT, 400),
        (grpc.StatusCode.FAILED_PRECONDITION, 400),
        (grpc.StatusCode.UNIMPLEMENTED, 501),
        (grpc.StatusCode.ABORTED, 409),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 503),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 504),
    ):
        answer = await client.post(MODEL + ":predict", json={"instances": PIXELS.tolist()})
        assert answer.status_code == status, code
        assert answer.json()["error"] == "scripted"

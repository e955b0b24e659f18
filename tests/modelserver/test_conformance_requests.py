"""What a request must name, how large it may be, and how refusals are worded; true of the original, too."""

from __future__ import annotations

import sys
from typing import Any

import grpc
import numpy as np
import pytest

from serving import protos, tensors
from tests.modelserver.process import ServerProcess
from tests.modelserver.test_conformance_predict import Code, X, predict_refusal, refusal, request


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 is not this machine")
def test_grpc_is_not_answered_on_one_interface_only(server: ServerProcess) -> None:
    message = protos.GetModelStatusRequest(model_spec={"name": "kinds"})
    with grpc.insecure_channel(f"127.0.0.2:{server.port}") as channel:
        call: Any = channel.unary_unary(f"/{protos.MODEL_SERVICE}/GetModelStatus")
        answer = protos.GetModelStatusResponse.FromString(call(message.SerializeToString(), timeout=30))
    assert [each.version for each in answer.model_version_status] == [1]


@pytest.mark.parametrize(
    ("service", "method"),
    [
        (protos.PREDICTION_SERVICE, "Predict"),
        (protos.PREDICTION_SERVICE, "GetModelMetadata"),
        (protos.MODEL_SERVICE, "GetModelStatus"),
    ],
)
def test_a_request_for_no_model_is_refused(server: ServerProcess, service: str, method: str) -> None:
    empty = protos.methods(service)[method][0]()
    assert refusal(server, service, method, empty) == (Code.INVALID_ARGUMENT, "Missing ModelSpec")


def test_a_model_without_a_name_is_none(server: ServerProcess) -> None:
    assert predict_refusal(server, request("", "serving_default", x=X)) == (
        Code.INVALID_ARGUMENT,
        "ModelSpec has no name specified.",
    )


def test_of_metadata_there_are_signatures_only(server: ServerProcess) -> None:
    message = protos.GetModelMetadataRequest(
        model_spec={"name": "kinds"}, metadata_field=["signature_def", "nope"]
    )
    assert refusal(server, protos.PREDICTION_SERVICE, "GetModelMetadata", message) == (
        Code.INVALID_ARGUMENT,
        "Metadata field nope is not supported",
    )


def test_version_0_is_a_version_and_not_the_latest(server: ServerProcess) -> None:
    message = request("half_plus_two", x=X)
    message.model_spec.version.value = 0
    assert predict_refusal(server, message) == (
        Code.NOT_FOUND,
        "Servable not found for request: Specific(half_plus_two, 0)",
    )


def test_a_long_error_is_cut(server: ServerProcess) -> None:
    text = f'Serving signature key "{"a" * 2000}" not found.'
    assert predict_refusal(server, request("half_plus_two", "a" * 2000, x=X)) == (
        Code.FAILED_PRECONDITION,
        text[:1024] + "...TRUNCATED",
    )


def test_predict_takes_what_was_made_for_classify_and_nothing_that_was_made_for_no_method(
    server: ServerProcess,
) -> None:
    examples = np.array([b""], object)
    outputs = server.predict(request("odd_examples", "labels_only", inputs=examples)).outputs
    assert tensors.from_proto(outputs["classes"]).tolist() == [[b"1.000000", b"1.000000"]]
    assert predict_refusal(server, request("odd_examples", "by_hand", inputs=examples)) == (
        Code.INTERNAL,
        (
            "Expected prediction signature method_name to be one of {tensorflow/serving/predict, "
            "tensorflow/serving/classify, tensorflow/serving/regress}. Was: made/by/hand"
        ),
    )


def test_messages_may_be_large(server: ServerProcess) -> None:
    values = np.arange(2_000_000, dtype=np.float32)
    output = server.predict(request("kinds", "id_float32", x=values)).outputs["y"]
    assert np.array_equal(tensors.from_proto(output), values)


def test_every_input_that_is_missing_is_named_and_every_output_that_there_is(server: ServerProcess) -> None:
    code, text = predict_refusal(server, request("kinds", "two"))
    assert code is Code.INVALID_ARGUMENT
    assert "0!=2" in text
    assert "Missing but required: {a,b}" in text
    message = request("kinds", "two", a=np.zeros([1, 2], np.float32), b=np.zeros(1, np.int32))
    message.output_filter.append("nope")
    code, text = predict_refusal(server, message)
    assert code is Code.INVALID_ARGUMENT
    assert "Outputs expected to be in the set {doubled,total}." in text

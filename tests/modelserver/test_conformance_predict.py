"""Predict and its kin over gRPC, with the stock client and with plain messages; true of the original, too."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest

from serving import protos, tensors
from tests.modelserver.process import DTYPES, ServerProcess

Code = grpc.StatusCode


def request(model: str, signature: str = "", /, **inputs: np.ndarray) -> Any:
    made = protos.PredictRequest(model_spec={"name": model, "signature_name": signature})
    for alias, array in inputs.items():
        made.inputs[alias].CopyFrom(tensors.to_proto(array))
    return made


def refusal(server: ServerProcess, service: str, method: str, message: Any) -> tuple[Code, str]:
    with pytest.raises(grpc.RpcError) as caught:
        server.call(service, method, message)
    return caught.value.code(), caught.value.details() or ""


def predict_refusal(server: ServerProcess, message: Any) -> tuple[Code, str]:
    return refusal(server, protos.PREDICTION_SERVICE, "Predict", message)


X = np.array([1.0, 2.0, 5.0], np.float32)


def test_the_stock_client_of_the_guide_gets_the_documented_answers(server: ServerProcess) -> None:
    tf = pytest.importorskip("tensorflow")
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    stub = prediction_service_pb2_grpc.PredictionServiceStub(server.channel)
    message = predict_pb2.PredictRequest()
    message.model_spec.name = "half_plus_two"
    message.model_spec.version.value = 1
    message.inputs["x"].CopyFrom(tf.make_tensor_proto(X))
    response = stub.Predict(message, 10.0)
    assert list(response.outputs["y"].float_val) == [2.5, 3.0, 4.5]
    assert tf.make_ndarray(response.outputs["y"]).tolist() == [2.5, 3.0, 4.5]
    assert response.model_spec.name == "half_plus_two"
    assert response.model_spec.version.value == 1
    assert response.model_spec.signature_name == "serving_default"


def test_the_latest_available_version_answers_and_labels_choose(server: ServerProcess) -> None:
    message = request("half_plus_two", x=X)
    assert server.predict(message).model_spec.version.value == 2
    for label, version in (("stable", 1), ("canary", 2)):
        message.model_spec.version_label = label
        response = server.predict(message)
        assert response.model_spec.version.value == version
        assert list(response.outputs["y"].float_val) == [
            2.5 + version - 1,
            3.0 + version - 1,
            4.5 + version - 1,
        ]


@pytest.mark.parametrize("signature", ["serving_default", "named_by_ops"])
def test_a_tf1_model_answers_predict(server: ServerProcess, signature: str) -> None:
    response = server.predict(request("half_plus_two_tf1", signature, x=np.array([[2.0]], np.float32)))
    assert list(response.outputs["y"].float_val) == [3.0]
    assert response.model_spec.version.value == 123


def test_a_list_does_for_a_column_as_in_the_originals_own_test(server: ServerProcess) -> None:
    message = protos.PredictRequest(model_spec={"name": "half_plus_two_tf1"}, output_filter=["y"])
    message.inputs["x"].dtype = tensors.data_type_of(X.dtype)
    message.inputs["x"].tensor_shape.dim.add(size=1)
    message.inputs["x"].float_val.append(2.0)
    assert list(server.predict(message).outputs["y"].float_val) == [3.0]


@pytest.mark.parametrize("as_content", [True, False])
@pytest.mark.parametrize("name", DTYPES)
def test_every_type_goes_in_and_comes_out(server: ServerProcess, name: str, as_content: bool) -> None:
    data_type = {"float16": "DT_HALF", "float32": "DT_FLOAT", "float64": "DT_DOUBLE"}.get(
        name, f"DT_{name.upper()}"
    )
    number = tensors.DATA_TYPES.values_by_name[data_type].number
    values: np.ndarray
    if name == "string":
        values = np.array([[b"a", b"\xff\x00"], [b"", b"longer" * 50]], object)
    elif name == "bfloat16":
        values = np.array([[1.5, -2.0], [0.0, 3.0]], np.float32)
    else:
        values = np.array([[1, 0], [3, 100]]).astype(name)
    message = protos.PredictRequest(model_spec={"name": "kinds", "signature_name": f"id_{name}"})
    message.inputs["x"].CopyFrom(tensors.to_proto(values, as_content=as_content, data_type=number))
    output = server.predict(message).outputs["y"]
    assert output.dtype == number
    assert not output.tensor_content  # the typed fields are the original's default
    assert tensors.from_proto(output).tolist() == values.tolist()


@pytest.mark.parametrize(
    ("name", "value"),
    [("string", np.array(b"a\0\0", object)), ("int64", np.array(7)), ("float32", np.array(0.5, np.float32))],
)
def test_scalars_stay_scalars(server: ServerProcess, name: str, value: np.ndarray) -> None:
    output = server.predict(request("kinds", f"id_{name}", x=value)).outputs["y"]
    assert not output.tensor_shape.dim
    assert tensors.from_proto(output).item() == value.item()


def test_a_single_value_fills_its_tensor(server: ServerProcess) -> None:
    message = protos.PredictRequest(model_spec={"name": "half_plus_two"})
    message.inputs["x"].dtype = tensors.data_type_of(X.dtype)
    message.inputs["x"].tensor_shape.dim.add(size=3)
    message.inputs["x"].float_val.append(4.0)
    response = server.predict(message)
    assert tensors.from_proto(response.outputs["y"]).tolist() == [5.0, 5.0, 5.0]


def test_output_filter_picks_outputs(server: ServerProcess) -> None:
    message = request("kinds", "two", a=np.array([[1, 2]], np.float32), b=np.array([3], np.int32))
    both = server.predict(message)
    assert set(both.outputs) == {"total", "doubled"}
    message.output_filter.append("total")
    one = server.predict(message)
    assert {alias: list(proto.float_val) for alias, proto in one.outputs.items()} == {"total": [6.0]}
    message.output_filter.append("total")
    assert predict_refusal(server, message) == (Code.INVALID_ARGUMENT, "duplicate output tensor alias: total")
    del message.output_filter[:]
    message.output_filter.append("nope")
    code, text = predict_refusal(server, message)
    assert code is Code.INVALID_ARGUMENT
    assert "output tensor alias not found in signature: nope Outputs expected to be in the set {" in text


def test_unknown_models_versions_labels_and_signatures(server: ServerProcess) -> None:
    assert predict_refusal(server, request("nope", x=X)) == (
        Code.NOT_FOUND,
        "Servable not found for request: Latest(nope)",
    )
    message = request("half_plus_two", x=X)
    message.model_spec.version.value = 9
    assert predict_refusal(server, message) == (
        Code.NOT_FOUND,
        "Servable not found for request: Specific(half_plus_two, 9)",
    )
    message.model_spec.version.value = -1
    assert predict_refusal(server, message) == (
        Code.NOT_FOUND,
        "Servable not found for request: Specific(half_plus_two, -1)",
    )
    message.model_spec.version_label = "nope"
    assert predict_refusal(server, message) == (
        Code.INVALID_ARGUMENT,
        "Unrecognized servable version label: nope",
    )
    assert predict_refusal(server, request("half_plus_two", "nope", x=X)) == (
        Code.FAILED_PRECONDITION,
        'Serving signature key "nope" not found.',
    )
    assert predict_refusal(server, protos.PredictRequest())[0] is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("inputs", "parts"),
    [
        ({}, ["input size does not match signature: 0!=1", "Missing but required: {x}"]),
        ({"x": X, "z": X}, ["input size does not match signature: 2!=1", "Sent extra: {z}"]),
        ({"z": X}, ["x", "z"]),
        ({"x": X.astype(np.float64)}, ["to be float", "double"]),
        ({"x": np.array([b"a"], object)}, ["to be float", "string"]),
    ],
)
def test_wrong_inputs_are_invalid_arguments(
    server: ServerProcess, inputs: dict[str, np.ndarray], parts: list[str]
) -> None:
    code, text = predict_refusal(server, request("half_plus_two", **inputs))
    assert code is Code.INVALID_ARGUMENT
    assert all(part in text for part in parts), text


@pytest.mark.parametrize("shape", [(2, 4), (3,), (2, 3, 3, 3), (1, 0), (0,), ()])
def test_wrong_sizes_and_ranks_are_invalid_arguments(server: ServerProcess, shape: tuple[int, ...]) -> None:
    code, _ = predict_refusal(server, request("kinds", "matrix", x=np.zeros(shape, np.float32)))
    assert code is Code.INVALID_ARGUMENT


def test_two_inputs_that_name_one_tensor_are_one_fed_twice(server: ServerProcess) -> None:
    """Whichever of the two values was taken, the other would be lost without a word."""
    column = X[:, np.newaxis]
    message = request("half_plus_two_tf1", "two_names", x=column, also_x=column + 1)
    assert predict_refusal(server, message) == (
        Code.INVALID_ARGUMENT,
        'Endpoint "x:0" fed more than once.',
    )


def test_an_error_that_quotes_what_is_no_text_is_told_all_the_same(server: ServerProcess) -> None:
    code, text = predict_refusal(server, request("kinds", "number", s=np.array([b"a\xff"], object)))
    assert code is Code.INVALID_ARGUMENT
    assert "could not correctly convert string: a" in text


def test_content_that_does_not_match_its_shape_is_an_invalid_argument(server: ServerProcess) -> None:
    message = request("half_plus_two", x=X)
    message.inputs["x"].tensor_content = b"\0" * 11
    code, text = predict_refusal(server, message)
    assert code is Code.INVALID_ARGUMENT
    assert "tensor parsing error: x" in text
    message.inputs["x"].tensor_shape.dim[0].size = -5
    assert predict_refusal(server, message)[0] is Code.INVALID_ARGUMENT


def test_variables_that_a_session_does_not_restore_are_missing_as_in_the_original(
    server: ServerProcess,
) -> None:
    code, text = predict_refusal(server, request("keras_in_a_module", x=np.ones((1, 3), np.float32)))
    assert code is Code.FAILED_PRECONDITION
    assert "Could not find variable" in text


def test_an_empty_batch_gives_an_empty_answer(server: ServerProcess) -> None:
    output = server.predict(request("half_plus_two", x=np.zeros(0, np.float32))).outputs["y"]
    assert tensors.from_proto(output).shape == (0,)


def example(**features: float) -> Any:
    made = protos.Example()
    for name, value in features.items():
        made.features.feature[name].float_list.value.append(value)
    return made


def test_classify(server: ServerProcess) -> None:
    message = protos.ClassificationRequest(
        model_spec={"name": "half_plus_two_tf1", "signature_name": "classify_x_to_y"}
    )
    message.input.example_list.examples.extend([example(x=2.0), example(x=4.0)])
    response = server.call(protos.PREDICTION_SERVICE, "Classify", message)
    found = [[(c.label, c.score) for c in row.classes] for row in response.result.classifications]
    assert found == [[("2!", 3.0)], [("4!", 4.0)]]
    assert response.model_spec.name == "half_plus_two_tf1"
    assert response.model_spec.version.value == 123
    message.model_spec.signature_name = "classify_scores"
    response = server.call(protos.PREDICTION_SERVICE, "Classify", message)
    assert [row.classes[0].score for row in response.result.classifications] == [3.0, 4.0]
    assert response.result.classifications[0].classes[0].label == ""


def test_regress_with_context(server: ServerProcess) -> None:
    message = protos.RegressionRequest(
        model_spec={"name": "half_plus_two_tf1", "signature_name": "regress_x_to_y"}
    )
    listed = message.input.example_list_with_context
    listed.context.CopyFrom(example(x=8.0))
    listed.examples.extend([protos.Example(), example(x=2.0)])
    response = server.call(protos.PREDICTION_SERVICE, "Regress", message)
    assert [entry.value for entry in response.result.regressions] == [6.0, 3.0]


def test_multi_inference_runs_two_signatures_at_once(server: ServerProcess) -> None:
    request_class, _ = protos.methods(protos.PREDICTION_SERVICE)["MultiInference"]
    message = request_class()
    for kind, signature in (("classify", "classify_x_to_y"), ("regress", "regress_x_to_y")):
        message.tasks.add(
            model_spec={"name": "half_plus_two_tf1", "signature_name": signature},
            method_name=f"tensorflow/serving/{kind}",
        )
    message.input.example_list.examples.append(example(x=2.0))
    response = server.call(protos.PREDICTION_SERVICE, "MultiInference", message)
    assert response.results[0].classification_result.classifications[0].classes[0].label == "2!"
    assert response.results[1].regression_result.regressions[0].value == 3.0
    assert response.results[1].model_spec.name == "half_plus_two_tf1"
    assert response.results[1].model_spec.signature_name == "regress_x_to_y"
    message.tasks[1].model_spec.signature_name = "classify_x_to_y"
    code, text = refusal(server, protos.PREDICTION_SERVICE, "MultiInference", message)
    assert (code, text) == (Code.INVALID_ARGUMENT, "Duplicate evaluation of signature: classify_x_to_y")


@pytest.mark.parametrize(
    ("method", "signature", "text"),
    [
        ("Classify", "nope", "No signature was found with the name: nope"),
        ("Regress", "classify_x_to_y", "Expected regression signature method_name to be"),
        ("Classify", "serving_default", "Expected classification signature method_name to be"),
        (
            "Regress",
            "regress_wide",
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1]",
        ),
        ("Regress", "regress_bfloat16", "Expected output Tensor of DT_FLOAT.  Got: DT_BFLOAT16"),
    ],
)
def test_signatures_that_do_not_fit_the_method(
    server: ServerProcess, method: str, signature: str, text: str
) -> None:
    message = protos.methods(protos.PREDICTION_SERVICE)[method][0](
        model_spec={"name": "half_plus_two_tf1", "signature_name": signature}
    )
    message.input.example_list.examples.append(example(x=1.0))
    code, details = refusal(server, protos.PREDICTION_SERVICE, method, message)
    assert code is Code.INVALID_ARGUMENT
    assert text in details


def test_examples_that_are_missing_or_lack_a_feature(server: ServerProcess) -> None:
    message = protos.RegressionRequest(
        model_spec={"name": "half_plus_two_tf1", "signature_name": "regress_x_to_y"}
    )
    code, text = refusal(server, protos.PREDICTION_SERVICE, "Regress", message)
    assert code is Code.INVALID_ARGUMENT
    assert "Input is empty" in text
    message.input.example_list.examples.append(example(z=1.0))
    code, text = refusal(server, protos.PREDICTION_SERVICE, "Regress", message)
    assert code is Code.INVALID_ARGUMENT
    assert "x" in text


def test_metadata(server: ServerProcess) -> None:
    message = protos.GetModelMetadataRequest(
        model_spec={"name": "half_plus_two_tf1"}, metadata_field=["signature_def"]
    )
    response = server.call(protos.PREDICTION_SERVICE, "GetModelMetadata", message)
    signatures = protos.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert signatures.signature_def["regress_x_to_y"].method_name == "tensorflow/serving/regress"
    assert response.model_spec.name == "half_plus_two_tf1"
    assert response.model_spec.version.value == 123
    del message.metadata_field[:]
    assert refusal(server, protos.PREDICTION_SERVICE, "GetModelMetadata", message) == (
        Code.INVALID_ARGUMENT,
        "GetModelMetadataRequest must specify at least one metadata_field",
    )


def test_status(server: ServerProcess) -> None:
    assert server.states("half_plus_two") == {2: "AVAILABLE", 1: "AVAILABLE"}
    message = protos.GetModelStatusRequest(model_spec={"name": "half_plus_two", "version": {"value": 1}})
    response = server.call(protos.MODEL_SERVICE, "GetModelStatus", message)
    assert [entry.version for entry in response.model_version_status] == [1]
    message.model_spec.version.value = 3
    assert refusal(server, protos.MODEL_SERVICE, "GetModelStatus", message)[0] is Code.NOT_FOUND
    message = protos.GetModelStatusRequest(model_spec={"name": "nope"})
    assert refusal(server, protos.MODEL_SERVICE, "GetModelStatus", message) == (
        Code.NOT_FOUND,
        "Could not find any versions of model nope",
    )
    assert refusal(server, protos.MODEL_SERVICE, "GetModelStatus", protos.GetModelStatusRequest())[0] is (
        Code.INVALID_ARGUMENT
    )


@pytest.mark.parametrize("service", ["", "ModelService", "PredictionService"])
def test_health_by_flag(server: ServerProcess, service: str) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    asked = health_pb2.HealthCheckRequest(service=service)
    answer = health_pb2_grpc.HealthStub(server.channel).Check(asked, timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING

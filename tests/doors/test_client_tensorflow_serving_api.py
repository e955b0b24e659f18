"""The plain `tensorflow-serving-api` client, unchanged but for the address."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from tensorflow import make_ndarray, make_tensor_proto
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tests.doors.conftest import Live


@pytest.fixture(scope="module")
def channel(live: Live) -> Iterator[Any]:
    with grpc.insecure_channel(live.grpc_address) as channel:
        yield channel


@pytest.mark.parametrize("signature", ["serving_default", "serving_bytes"])
def test_predict_gives_the_class_and_the_version(
    live: Live, channel: Any, photograph: bytes, signature: str
) -> None:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "digits"
    request.model_spec.signature_name = signature
    if signature == "serving_bytes":
        request.inputs["image_bytes"].CopyFrom(make_tensor_proto([photograph]))
    else:
        image = Image.open(BytesIO(photograph)).convert("L").resize((8, 8), Image.Resampling.BILINEAR)
        request.inputs["images"].CopyFrom(make_tensor_proto(np.asarray(image)[None, :, :, None]))
    response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=30)
    scores = make_ndarray(response.outputs["scores"])
    assert scores.shape == (1, 10)
    assert int(scores[0].argmax()) == live.index
    assert response.model_spec.version.value == live.version


def test_metadata_and_status_are_told(live: Live, channel: Any) -> None:
    asked = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    asked.model_spec.name = "digits"
    response = prediction_service_pb2_grpc.PredictionServiceStub(channel).GetModelMetadata(asked, timeout=30)
    found = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(found)
    assert {"serving_default", "serving_bytes", "describe", "self_test"} <= set(found.signature_def)
    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "digits"
    states = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(status, timeout=30)
    assert [(each.version, each.state) for each in states.model_version_status] == [(live.version, 30)]


def test_a_missing_version_is_named_as_the_original_names_it(channel: Any) -> None:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "digits"
    request.model_spec.version.value = 99
    with pytest.raises(grpc.RpcError) as refused:
        prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=30)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert refused.value.details() == "Servable not found for request: Specific(digits, 99)"


def test_a_stranger_may_not_change_what_is_served(channel: Any) -> None:
    request = model_management_pb2.ReloadConfigRequest()
    request.config.model_config_list.config.add(name="evil", base_path="/tmp/evil")
    with pytest.raises(grpc.RpcError) as refused:
        model_service_pb2_grpc.ModelServiceStub(channel).HandleReloadConfigRequest(request, timeout=30)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "admin" in str(refused.value.details())

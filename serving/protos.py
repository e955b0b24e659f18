"""The one place where protocol messages come from.

TensorFlow Serving's messages are loaded from a descriptor set into a *private* pool, so that the
gateway needs neither TensorFlow nor `tensorflow-serving-api`, and so that a process which has
imported those can use this module beside them. Sluice's own messages live in the same pool.

Message classes are made at run time, so type checkers see `Any`; the names below are the whole list
of what the rest of Sluice may use.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

DESCRIPTOR_SETS = ("tensorflow_serving.binpb", "sluice.binpb")


def _load_pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for name in DESCRIPTOR_SETS:
        serialized = resources.files("protos").joinpath(name).read_bytes()
        for file in descriptor_pb2.FileDescriptorSet.FromString(serialized).file:
            pool.Add(file)
    return pool


POOL = _load_pool()


def message(full_name: str) -> Any:
    """The class of the message `full_name`, such as `tensorflow.serving.PredictRequest`."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(full_name))


def methods(service: str) -> dict[str, tuple[Any, Any]]:
    """The methods of `service`: name -> (request class, response class)."""
    found = POOL.FindServiceByName(service)
    return {
        method.name: (message(method.input_type.full_name), message(method.output_type.full_name))
        for method in found.methods
    }


def as_json(found: Any) -> str:
    """A message as TensorFlow Serving's REST API prints it: by its fields' own names, defaults too."""
    return json_format.MessageToJson(
        found,
        always_print_fields_with_no_presence=True,
        preserving_proto_field_name=True,
        indent=1,
        ensure_ascii=False,
    )


PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"
IMAGE_CLASSIFICATION = "sluice.v1.ImageClassification"
ROLLOUTS = "sluice.v1.Rollouts"

OPEN_INFERENCE = "inference.GRPCInferenceService"

TensorProto = message("tensorflow.TensorProto")
SignatureDef = message("tensorflow.SignatureDef")

ModelSpec = message("tensorflow.serving.ModelSpec")
PredictRequest = message("tensorflow.serving.PredictRequest")
PredictResponse = message("tensorflow.serving.PredictResponse")
GetModelMetadataRequest = message("tensorflow.serving.GetModelMetadataRequest")
GetModelMetadataResponse = message("tensorflow.serving.GetModelMetadataResponse")
SignatureDefMap = message("tensorflow.serving.SignatureDefMap")
GetModelStatusRequest = message("tensorflow.serving.GetModelStatusRequest")
GetModelStatusResponse = message("tensorflow.serving.GetModelStatusResponse")
MODEL_VERSION_STATES: dict[int, str] = {
    value.number: value.name
    for value in POOL.FindEnumTypeByName("tensorflow.serving.ModelVersionStatus.State").values
}
ReloadConfigRequest = message("tensorflow.serving.ReloadConfigRequest")
ReloadConfigResponse = message("tensorflow.serving.ReloadConfigResponse")
ClassificationResponse = message("tensorflow.serving.ClassificationResponse")
RegressionResponse = message("tensorflow.serving.RegressionResponse")
MultiInferenceResponse = message("tensorflow.serving.MultiInferenceResponse")
ClassificationRequest = message("tensorflow.serving.ClassificationRequest")
RegressionRequest = message("tensorflow.serving.RegressionRequest")
PredictionLog = message("tensorflow.serving.PredictionLog")
Example = message("tensorflow.Example")
ModelServerConfig = message("tensorflow.serving.ModelServerConfig")
ModelConfig = message("tensorflow.serving.ModelConfig")
BatchingParameters = message("tensorflow.serving.BatchingParameters")
MonitoringConfig = message("tensorflow.serving.MonitoringConfig")
SSLConfig = message("tensorflow.serving.SSLConfig")

ClassifyRequest = message("sluice.v1.ClassifyRequest")
ClassifyResponse = message("sluice.v1.ClassifyResponse")

ModelInferRequest = message("inference.ModelInferRequest")
ModelInferResponse = message("inference.ModelInferResponse")
ModelStreamInferResponse = message("inference.ModelStreamInferResponse")
ServerLiveResponse = message("inference.ServerLiveResponse")
ServerReadyResponse = message("inference.ServerReadyResponse")
ModelReadyResponse = message("inference.ModelReadyResponse")
ServerMetadataResponse = message("inference.ServerMetadataResponse")
ModelMetadataResponse = message("inference.ModelMetadataResponse")
ModelConfigResponse = message("inference.ModelConfigResponse")
RepositoryIndexResponse = message("inference.RepositoryIndexResponse")

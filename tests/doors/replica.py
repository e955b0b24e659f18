"""A scripted replica that knows all of TensorFlow Serving's API, labels included."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from serving import protos
from tests.support.fake_replica import FakeReplica, Refusal, _describe_tensor, _handler


@dataclass
class ScriptedReplica(FakeReplica):
    """Adds labels, and the calls that take Examples.

    Attributes:
        labels: label -> version.
        reloaded: the configurations that came.
    """

    labels: dict[str, int] = field(default_factory=dict)
    reloaded: list[Any] = field(default_factory=list)

    def _check(self, spec: Any) -> None:
        if spec.WhichOneof("version_choice") == "version_label":
            if spec.version_label not in self.labels:
                text = f"Unrecognized servable version label: {spec.version_label}"
                raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, text)
            spec.version.value = self.labels[spec.version_label]
        super()._check(spec)

    async def metadata(self, request: Any) -> Any:
        """The signatures, one more of them for encoded files, and the version that they are of."""
        response = await super().metadata(request)
        found = protos.SignatureDefMap()
        response.metadata["signature_def"].Unpack(found)
        by_bytes = found.signature_def["serving_bytes"]
        by_bytes.inputs["image_bytes"].dtype = 7
        by_bytes.inputs["image_bytes"].tensor_shape.dim.add(size=-1)
        _describe_tensor(by_bytes.outputs["scores"], np.float32, (-1, 10))
        response.metadata["signature_def"].Pack(found)
        response.model_spec.CopyFrom(request.model_spec)
        return response

    async def classify(self, request: Any) -> Any:
        """One class for each Example."""
        self._check(request.model_spec)
        response = protos.ClassificationResponse(model_spec=request.model_spec)
        for _ in request.input.example_list.examples:
            response.result.classifications.add().classes.add(label="seven", score=0.75)
        return response

    async def regress(self, request: Any) -> Any:
        """One number for each Example."""
        self._check(request.model_spec)
        response = protos.RegressionResponse(model_spec=request.model_spec)
        for _ in request.input.example_list.examples or request.input.example_list_with_context.examples:
            response.result.regressions.add(value=2.5)
        return response

    async def multi_inference(self, request: Any) -> Any:
        """A result for each task."""
        response = protos.MultiInferenceResponse()
        for task in request.tasks:
            self._check(task.model_spec)
            result = response.results.add(model_spec=task.model_spec)
            result.regression_result.regressions.add(value=1.5)
        return response

    async def reload(self, request: Any) -> Any:
        """Keep what came."""
        self.reloaded.append(request.config)
        return await super().reload(request)

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """What a gRPC server registers."""
        prediction = {
            "Predict": self.predict,
            "GetModelMetadata": self.metadata,
            "Classify": self.classify,
            "Regress": self.regress,
            "MultiInference": self.multi_inference,
        }
        model = {"GetModelStatus": self.status, "HandleReloadConfigRequest": self.reload}
        return [
            _handler(protos.PREDICTION_SERVICE, prediction),
            _handler(protos.MODEL_SERVICE, model),
        ]

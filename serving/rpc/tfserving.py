"""TensorFlow Serving's PredictionService and ModelService, through the gateway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import structlog

from serving import protos
from serving.errors import InvalidInput
from serving.gateway import Gateway
from serving.model_version import ModelVersion
from serving.prediction import ModelRef, RequestContext
from serving.rpc.call import Unary, service
from serving.tensorflow_api import check_signature_name, ref_of, status_response, their_words

_log = structlog.get_logger()


class TensorFlowServingRpc:
    """Both services over a gateway: requests are routed, and otherwise passed on as they are."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """What a gRPC server registers."""
        prediction: dict[str, Unary] = {
            method: self._asking(method) for method in ("Predict", "Classify", "Regress", "GetModelMetadata")
        }
        prediction["MultiInference"] = self.multi_inference
        model: dict[str, Unary] = {
            "GetModelStatus": self.get_model_status,
            "HandleReloadConfigRequest": self.reload_config,
        }
        return (
            service(protos.PREDICTION_SERVICE, self._gateway, prediction),
            service(protos.MODEL_SERVICE, self._gateway, model),
        )

    def _asking(self, method: str) -> Unary:
        async def ask(request: Any, context: RequestContext) -> Any:
            return await self._ask(method, request.model_spec, _ref_in, request, context)

        return ask

    async def multi_inference(self, request: Any, context: RequestContext) -> Any:
        """MultiInferenceRequest -> MultiInferenceResponse; all tasks are of one model."""
        spec = request.tasks[0].model_spec if request.tasks else protos.ModelSpec()
        return await self._ask("MultiInference", spec, _ref_in_tasks, request, context)

    async def _ask(
        self,
        method: str,
        spec: Any,
        ref_in: Callable[[Any], ModelRef],
        request: Any,
        context: RequestContext,
    ) -> Any:
        async def prepare(_: ModelVersion) -> Any:
            return request

        with self._gateway.request(context, ref_of(spec)) as ticket:
            ref = ref_in(request)
            ticket.hold(request.ByteSize())
            with their_words(ref):
                return await self._gateway.ask(method, ref, prepare, context)

    async def get_model_status(self, request: Any, context: RequestContext) -> Any:
        """GetModelStatusRequest -> GetModelStatusResponse: over all replicas, the furthest state of each."""
        ref = ref_of(request.model_spec)
        with self._gateway.request(context, ref):
            if not request.HasField("model_spec"):
                raise InvalidInput("Missing ModelSpec")
            return status_response(self._gateway.catalog, ref)

    async def reload_config(self, request: Any, context: RequestContext) -> Any:
        """ReloadConfigRequest -> ReloadConfigResponse: for every replica. Needs the scope `admin`."""
        with self._gateway.request(context, ModelRef(), "admin") as ticket:
            if request.config.WhichOneof("config") != "model_config_list":
                raise InvalidInput("only a model_config_list can be given to running servers")
            await self._gateway.reload_config(request.config, context)
            names = [each.name for each in request.config.model_config_list.config]
            _log.info("a caller set the models", caller=ticket.caller.name, models=names)
        response = protos.ReloadConfigResponse()
        response.status.error_code = 0
        return response


def _ref_in(request: Any) -> ModelRef:
    """The model and version that a call of PredictionService asks for; raises InvalidInput."""
    if not request.HasField("model_spec"):
        raise InvalidInput("Missing ModelSpec")
    check_signature_name(request.model_spec.signature_name)
    return ref_of(request.model_spec)


def _ref_in_tasks(request: Any) -> ModelRef:
    """Likewise, for a MultiInferenceRequest: as in the original, the first task's version is enough."""
    if not request.tasks:
        raise InvalidInput("Inference request must contain at least one task.")
    for task in request.tasks:
        check_signature_name(task.model_spec.signature_name)
    first, *others = (ref_of(task.model_spec) for task in request.tasks)
    for index, other in enumerate(others, 1):
        if other.name != first.name:
            raise InvalidInput("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        if other not in (first, ModelRef(first.name)):
            raise InvalidInput(
                f"tasks[{index}] and the first task are for different versions; name the same one in both"
            )
    return first

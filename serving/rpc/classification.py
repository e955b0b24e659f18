"""`sluice.v1.ImageClassification`."""

from __future__ import annotations

import time
import uuid
from typing import Any

import grpc
import grpc.aio
import structlog

from serving import protos
from serving.errors import Internal, InvalidInput, SluiceError
from serving.gateway import Gateway
from serving.prediction import ImageResult, ModelRef, Prediction, RequestContext
from serving.rpc.errors import rich_status

_log = structlog.get_logger()


class ImageClassification:
    """The service's methods over a gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def handler(self) -> grpc.GenericRpcHandler:
        """What a gRPC server registers."""
        request, response = protos.methods(protos.IMAGE_CLASSIFICATION)["Classify"]
        unary = grpc.unary_unary_rpc_method_handler(
            self.classify,
            request_deserializer=request.FromString,
            response_serializer=response.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(protos.IMAGE_CLASSIFICATION, {"Classify": unary})

    async def classify(self, request: Any, call: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """ClassifyRequest -> ClassifyResponse; errors become rich statuses."""
        context = request_context(call, self._gateway.settings.request_timeout_s)
        response = None
        try:
            response = await self._classify(request, context)
        except SluiceError as error:
            failure: SluiceError = error
        except Exception:
            _log.exception("a request failed in an unforeseen way", request_id=context.request_id)
            failure = Internal("the request failed in an unforeseen way; the log says how")
        if response is None:
            await call.abort_with_status(rich_status(failure))
        return response

    async def _classify(self, request: Any, context: RequestContext) -> Any:
        if request.version < 0:
            raise InvalidInput(f"version is {request.version}; versions are 0 or above")
        ref = ModelRef(request.model or None, request.version or None)
        top_k = request.top_k if request.HasField("top_k") else None
        with self._gateway.request(context, ref) as ticket:
            ticket.hold(sum(map(len, request.images)))
            return _to_response(await self._gateway.classify(ref, request.images, top_k, context))


def request_context(call: grpc.aio.ServicerContext[Any, Any], default_timeout_s: float) -> RequestContext:
    """Who asks, and until when: the call's deadline, at most the default."""
    metadata = {str(key): value for key, value in call.invocation_metadata() or ()}
    request_id = str(metadata.get("x-request-id", uuid.uuid4().hex))
    remaining_s = call.time_remaining()
    timeout_s = default_timeout_s if remaining_s is None else min(remaining_s, default_timeout_s)
    return RequestContext(
        request_id=request_id,
        protocol="grpc",
        deadline=time.monotonic() + timeout_s,
        routing_key=str(metadata.get("x-routing-key", request_id)),
    )


def _to_response(prediction: Prediction) -> Any:
    response = protos.ClassifyResponse(model=prediction.model, version=prediction.version)
    for result in prediction.results:
        _add_result(response, result)
    return response


def _add_result(response: Any, result: ImageResult) -> None:
    added = response.results.add()
    if result.error is not None:
        added.error.kind = result.error.kind
        added.error.message = result.error.message
    for each in result.classes:
        added.classes.add(label=each.label, index=each.index, score=each.score)

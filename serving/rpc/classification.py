"""`sluice.v1.ImageClassification`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from serving import protos
from serving.errors import InvalidInput, SluiceError
from serving.gateway import Gateway
from serving.prediction import ImageResult, ModelRef, Prediction, RequestContext
from serving.rpc.call import each_answered, service


class ImageClassification:
    """The service's methods over a gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def handler(self) -> grpc.GenericRpcHandler:
        """What a gRPC server registers."""
        return service(
            protos.IMAGE_CLASSIFICATION,
            self._gateway,
            {"Classify": self.classify},
            {"ClassifyStream": self.classify_stream},
        )

    async def classify(self, request: Any, context: RequestContext) -> Any:
        """ClassifyRequest -> ClassifyResponse, or its bytes if it is large."""
        ref = ModelRef(request.model or None, request.version or None, request.label)
        top_k = request.top_k if request.HasField("top_k") else None
        with self._gateway.request(context, ref) as ticket:
            if request.version < 0:
                raise InvalidInput(f"version is {request.version}; versions are 0 or above")
            if request.version and request.label:
                raise InvalidInput("the request has a version and a label; give one of them")
            ticket.hold(request.ByteSize())
            prediction = await self._gateway.classify(ref, request.images, top_k, context)
            if prediction.is_large:
                return await self._gateway.in_thread(_to_bytes, prediction, request.id)
            return _to_response(prediction, request.id)

    def classify_stream(self, requests: AsyncIterator[Any], context: RequestContext) -> AsyncIterator[Any]:
        """ClassifyRequests -> ClassifyResponses; a request that fails is answered with its error."""
        return each_answered(requests, context, self._gateway, self.classify, _failed)


def _to_response(prediction: Prediction, id_: str) -> Any:
    response = protos.ClassifyResponse(model=prediction.model, version=prediction.version, id=id_)
    for result in prediction.results:
        _add_result(response, result)
    return response


def _to_bytes(prediction: Prediction, id_: str) -> bytes:
    """A response serialized image by image, so that others get the interpreter lock in between.

    Concatenated messages are one message with the results of all (Protocol Buffers, "Encoding").
    """
    first = protos.ClassifyResponse(model=prediction.model, version=prediction.version, id=id_)
    written = [first.SerializeToString()]
    for result in prediction.results:
        _add_result(part := protos.ClassifyResponse(), result)
        written.append(part.SerializeToString())
    return b"".join(written)


def _add_result(response: Any, result: ImageResult) -> None:
    added = response.results.add(prediction_id=result.prediction_id)
    if result.error is not None:
        added.error.kind = result.error.kind
        added.error.message = result.error.message
    for each in result.classes:
        added.classes.add(label=each.label, index=each.index, score=each.score)


def _failed(error: SluiceError, request: Any) -> Any:
    response = protos.ClassifyResponse(id=request.id)
    response.error.kind = error.kind
    response.error.message = error.message
    return response

"""`inference.GRPCInferenceService`: the Open Inference Protocol, version 2, with Triton's extensions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Any

import grpc
from google.protobuf import json_format

from serving import open_inference, protos
from serving.errors import InvalidInput, NotFound, SluiceError
from serving.gateway import Gateway
from serving.model_version import ModelVersion
from serving.open_inference import InferRequest, Tensor
from serving.prediction import ModelRef, RequestContext
from serving.rpc.call import each_answered, service

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class OpenInferenceRpc:
    """The service's methods over a gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def handler(self) -> grpc.GenericRpcHandler:
        """What a gRPC server registers."""
        return service(
            protos.OPEN_INFERENCE,
            self._gateway,
            {
                "ServerLive": self.server_live,
                "ServerReady": self.server_ready,
                "ModelReady": self.model_ready,
                "ServerMetadata": self.server_metadata,
                "ModelMetadata": self.model_metadata,
                "ModelInfer": self.model_infer,
                "ModelConfig": self.model_config,
                "RepositoryIndex": self.repository_index,
            },
            {"ModelStreamInfer": self.model_stream_infer},
        )

    async def server_live(self, _request: Any, _context: RequestContext) -> Any:
        """ServerLiveRequest -> ServerLiveResponse."""
        return protos.ServerLiveResponse(live=True)

    async def server_ready(self, _request: Any, _context: RequestContext) -> Any:
        """ServerReadyRequest -> ServerReadyResponse."""
        return protos.ServerReadyResponse(
            ready=not self._gateway.draining and not self._gateway.catalog.missing()
        )

    async def server_metadata(self, _request: Any, _context: RequestContext) -> Any:
        """ServerMetadataRequest -> ServerMetadataResponse."""
        return protos.ServerMetadataResponse(
            name="sluice", version=version("sluice"), extensions=open_inference.EXTENSIONS
        )

    async def model_ready(self, request: Any, context: RequestContext) -> Any:
        """ModelReadyRequest -> ModelReadyResponse.

        As in Triton, a version that does not exist is not ready. Over HTTP clients take any refusal for "not
        ready", but here an error would be raised to a client that waits for a version to appear.
        """
        with self._gateway.request(context, ModelRef(request.name or None)):
            ref = open_inference.model_ref(request.name, request.version)
            try:
                ready = open_inference.is_ready(self._gateway.catalog, ref)
            except NotFound:
                ready = False
            return protos.ModelReadyResponse(ready=ready)

    async def model_metadata(self, request: Any, context: RequestContext) -> Any:
        """ModelMetadataRequest -> ModelMetadataResponse."""
        model = await self._model(request, context)
        found = open_inference.metadata(model, list(self._gateway.catalog.versions(model.name)))
        return json_format.ParseDict(found, protos.ModelMetadataResponse())

    async def model_config(self, request: Any, context: RequestContext) -> Any:
        """ModelConfigRequest -> ModelConfigResponse."""
        model = await self._model(request, context)
        found = open_inference.config(model, self._gateway.settings.max_batch)
        return json_format.ParseDict({"config": found}, protos.ModelConfigResponse())

    async def _model(self, request: Any, context: RequestContext) -> ModelVersion:
        with self._gateway.request(context, ModelRef(request.name or None)):
            ref = open_inference.model_ref(request.name, request.version)
            return await self._gateway.resolve(ref, context)

    async def repository_index(self, request: Any, context: RequestContext) -> Any:
        """RepositoryIndexRequest -> RepositoryIndexResponse."""
        with self._gateway.request(context, ModelRef()):
            found = open_inference.index(self._gateway.catalog, ready_only=request.ready)
        return protos.RepositoryIndexResponse(models=found)

    async def model_infer(self, request: Any, context: RequestContext) -> Any:
        """ModelInferRequest -> ModelInferResponse."""
        with self._gateway.request(context, ModelRef(request.model_name or None)) as ticket:
            ref = open_inference.model_ref(request.model_name, request.model_version)
            ticket.hold(request.ByteSize())
            asked = await self._gateway.in_thread(_parse, request)
            answering: ModelVersion | None = None

            async def prepare(model: ModelVersion) -> Any:
                nonlocal answering
                answering = model
                return await self._gateway.in_thread(open_inference.predict_request, model, asked)

            response = await self._gateway.ask("Predict", ref, prepare, context)
            assert answering is not None
            return await self._gateway.in_thread(_to_response, response, asked, answering, request.id)

    def model_stream_infer(self, requests: AsyncIterator[Any], context: RequestContext) -> AsyncIterator[Any]:
        """ModelInferRequests -> ModelStreamInferResponses; what fails is answered with its error."""
        return each_answered(requests, context, self._gateway, self._infer_one, _failed)

    async def _infer_one(self, request: Any, context: RequestContext) -> Any:
        return protos.ModelStreamInferResponse(infer_response=await self.model_infer(request, context))


def _failed(error: SluiceError, request: Any) -> Any:
    response = protos.ModelStreamInferResponse(error_message=error.message)
    response.infer_response.id = request.id
    return response


def _to_response(response: Any, asked: InferRequest, model: ModelVersion, id_: str) -> Any:
    """The ModelInferResponse of a PredictResponse."""
    made = protos.ModelInferResponse(model_name=model.name, model_version=str(model.version), id=id_)
    for tensor in open_inference.outputs_of(response, asked, model):
        made.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.array.shape)
        made.raw_output_contents.append(open_inference.to_raw(tensor))
    return made


def _parse(request: Any) -> InferRequest:
    """What a ModelInferRequest asks for; raises InvalidInput."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidInput(f"there are {len(request.inputs)} inputs and {len(raw)} raw_input_contents")
    return InferRequest(
        inputs=list(map(_from_raw, request.inputs, raw) if raw else map(_from_contents, request.inputs)),
        outputs={each.name: _classes(each) for each in request.outputs},
        signature_name=request.parameters["signature_name"].string_param,
    )


def _classes(output: Any) -> int:
    """How many classes are wanted in place of an output's scores; 0: the scores."""
    if "classification" not in output.parameters:
        return 0
    given = output.parameters["classification"]
    if given.WhichOneof("parameter_choice") != "int64_param" or given.int64_param < 0:
        raise InvalidInput(f'classification of "{output.name}" is a whole number, an int64_param')
    return int(given.int64_param)


def _from_raw(each: Any, raw: bytes) -> Tensor:
    if each.contents.ListFields():
        raise InvalidInput(f'"{each.name}" has contents, and raw_input_contents as well; give one of them')
    return open_inference.from_raw(each.name, each.datatype, each.shape, raw)


def _from_contents(each: Any) -> Tensor:
    open_inference.data_type(each.datatype)
    name = _CONTENTS.get(each.datatype)
    values = getattr(each.contents, name) if name else ()
    filled = [field.name for field, _ in each.contents.ListFields()]
    if filled not in ([], [name]):
        raise InvalidInput(f'"{each.name}" is {each.datatype}; its contents are in {", ".join(filled)}')
    return open_inference.from_values(each.name, each.datatype, each.shape, list(values))

"""A scripted replica: TensorFlow Serving's gRPC API on a real socket, with behaviour that a test sets.

It "classifies" uint8 [N,H,W,C] images into ten classes: the class is the mean pixel times ten over 256.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import numpy as np
import orjson

from serving import protos, tensors

CLASSES = 10
LABELS = tuple(f"class-{index}" for index in range(CLASSES))
TIME_LEFT_S: ContextVar[float | None] = ContextVar("TIME_LEFT_S")
"""In a hook: how long the caller waited for its answer as the call came, in seconds; None: for ever."""


class Refusal(Exception):
    """What a hook raises to make an RPC fail with a status."""

    def __init__(self, code: grpc.StatusCode, details: str = "scripted") -> None:
        super().__init__(details)
        self.code = code
        self.details = details


async def _nothing(_request: Any) -> None:
    return None


@dataclass
class FakeReplica:
    """What the replica has and does. Tests change it while it runs.

    Attributes:
        versions: model -> the versions that are AVAILABLE.
        shape: height, width and channels of the images that it takes.
        describes: whether it has a `describe` signature.
        before_predict: awaited before each Predict of `serving_default`; may wait, or raise Refusal.
        batches: the size of each batch of images that came.
    """

    versions: dict[str, set[int]] = field(default_factory=lambda: {"digits": {1}})
    shape: tuple[int, int, int] = (8, 8, 1)
    describes: bool = True
    before_predict: Callable[[Any], Awaitable[None]] = _nothing
    batches: list[int] = field(default_factory=list)
    predicted_versions: list[int] = field(default_factory=list)
    address: str = ""

    async def predict(self, request: Any) -> Any:
        """Scores, or labels and a card."""
        self._check(request.model_spec)
        if request.model_spec.signature_name == "describe":
            return self._describe(request)
        images = tensors.from_proto(request.inputs["images"])
        self.batches.append(len(images))
        self.predicted_versions.append(request.model_spec.version.value)
        await self.before_predict(request)
        self._check(request.model_spec)
        scores = np.full((len(images), CLASSES), 0.01, np.float32)
        winners = (images.reshape(len(images), -1).mean(axis=1) * CLASSES // 256).astype(int)
        scores[np.arange(len(images)), winners] = 0.91
        return self._answer(request, scores=scores)

    def _describe(self, request: Any) -> Any:
        index = tensors.from_proto(request.inputs["index"])
        label = np.array([LABELS[each].encode() for each in index], object)
        card = np.array([orjson.dumps({"schema": 1, "labels": LABELS}) for _ in index], object)
        return self._answer(request, label=label, card=card)

    def _answer(self, request: Any, **outputs: np.ndarray) -> Any:
        response = protos.PredictResponse()
        response.model_spec.CopyFrom(request.model_spec)
        for name, array in outputs.items():
            if not request.output_filter or name in request.output_filter:
                response.outputs[name].CopyFrom(tensors.to_proto(array))
        return response

    async def metadata(self, request: Any) -> Any:
        """The signatures."""
        self._check(request.model_spec)
        found = protos.SignatureDefMap()
        default = found.signature_def["serving_default"]
        _describe_tensor(default.inputs["images"], np.uint8, (-1, *self.shape))
        _describe_tensor(default.outputs["scores"], np.float32, (-1, CLASSES))
        if self.describes:
            _describe_tensor(found.signature_def["describe"].inputs["index"], np.int32, (-1,))
        response = protos.GetModelMetadataResponse()
        response.metadata["signature_def"].Pack(found)
        return response

    async def status(self, request: Any) -> Any:
        """Every version as AVAILABLE."""
        name = request.model_spec.name
        if name not in self.versions:
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {name}")
        response = protos.GetModelStatusResponse()
        for version in sorted(self.versions[name], reverse=True):
            response.model_version_status.add(version=version, state="AVAILABLE")
        return response

    async def reload(self, request: Any) -> Any:
        """Take the names of the models; each gets version 1."""
        names = [each.name for each in request.config.model_config_list.config]
        self.versions = {name: self.versions.get(name, {1}) for name in names}
        return protos.ReloadConfigResponse()

    def _check(self, spec: Any) -> None:
        if spec.version.value not in self.versions.get(spec.name, ()):
            text = f"Servable not found for request: Specific({spec.name}, {spec.version.value})"
            raise Refusal(grpc.StatusCode.NOT_FOUND, text)

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """What a gRPC server registers."""
        prediction = {"Predict": self.predict, "GetModelMetadata": self.metadata}
        model = {"GetModelStatus": self.status, "HandleReloadConfigRequest": self.reload}
        return [
            _handler(protos.PREDICTION_SERVICE, prediction),
            _handler(protos.MODEL_SERVICE, model),
        ]


@dataclass
class NoNumbers(FakeReplica):
    """Has NaN for the scores of the brightest images, or of all."""

    everywhere: bool = False

    def _answer(self, request: Any, **outputs: Any) -> Any:
        if "scores" in outputs:
            scores = outputs["scores"]
            scores[(scores.argmax(axis=1) == CLASSES - 1) | self.everywhere] = np.nan
        return super()._answer(request, **outputs)


def _describe_tensor(info: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    info.dtype = tensors.data_type_of(np.dtype(dtype))
    for size in shape:
        info.tensor_shape.dim.add(size=size)


def _handler(service: str, implementations: Mapping[str, Callable[[Any], Awaitable[Any]]]) -> Any:
    def unary(run: Callable[[Any], Awaitable[Any]], request: Any, response: Any) -> Any:
        async def serve(message: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            TIME_LEFT_S.set(context.time_remaining())
            try:
                return await run(message)
            except Refusal as refusal:
                await context.abort(refusal.code, refusal.details)

        return grpc.unary_unary_rpc_method_handler(serve, request.FromString, response.SerializeToString)

    types = protos.methods(service)
    return grpc.method_handlers_generic_handler(
        service, {name: unary(run, *types[name]) for name, run in implementations.items()}
    )


@asynccontextmanager
async def running(replica: FakeReplica, address: str = "127.0.0.1:0") -> AsyncIterator[FakeReplica]:
    """Serve `replica` while the block runs; `replica.address` says where."""
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    server.add_generic_rpc_handlers(replica.handlers())
    port = server.add_insecure_port(address)
    replica.address = address if address.startswith("unix:") else f"127.0.0.1:{port}"
    await server.start()
    try:
        yield replica
    finally:
        await server.stop(None)


async def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Wait until `condition` holds; fails the test if it never does."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)

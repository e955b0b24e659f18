"""One replica's gRPC API: TensorFlow Serving's PredictionService and ModelService.

This is the boundary where gRPC errors become Sluice's kinds of error; nothing above sees an RPC error.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import grpc.aio

from serving import errors, protos
from serving.telemetry.tracing import Trace

# A network path that is silently cut is detected by the kernel: gRPC sets TCP_USER_TIMEOUT (RFC 5482) to the
# keepalive's timeout wherever keepalive is on, and the replica is asked for its versions about once a second,
# so that something always waits to be acknowledged. Without it a dead connection lasts as long as TCP
# retransmits, a quarter of an hour; and one whose path is back stalls until the next retransmission.
_CUT_AFTER_MS = 5_000
# Pings are not needed for that, and a server that gets them more often than every five minutes while it sends
# nothing ends the connection: GOAWAY, ENHANCE_YOUR_CALM (grpc's default, which TensorFlow Serving keeps).
_PING_INTERVAL_MS = 330_000

_CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", _PING_INTERVAL_MS),
    ("grpc.keepalive_timeout_ms", _CUT_AFTER_MS),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A replica that restarts is back within seconds; the default backs off to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Each replica has its own connection: sharing one between two pools in a process would hide failures.
    ("grpc.use_local_subchannel_pool", 1),
    # Replicas are the gateway's own back end. gRPC would ask them through `http_proxy`, even at 127.0.0.1.
    ("grpc.enable_http_proxy", 0),
)

KIND_OF_STATUS: dict[grpc.StatusCode, type[errors.SluiceError]] = {
    grpc.StatusCode.CANCELLED: errors.Unavailable,  # not by us: the replica is shutting down
    grpc.StatusCode.UNKNOWN: errors.Internal,
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidInput,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.Conflict,
    grpc.StatusCode.PERMISSION_DENIED: errors.Internal,  # the gateway's credentials, not the caller's
    grpc.StatusCode.UNAUTHENTICATED: errors.Internal,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Overloaded,
    grpc.StatusCode.FAILED_PRECONDITION: errors.FailedPrecondition,
    grpc.StatusCode.ABORTED: errors.Conflict,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidInput,
    grpc.StatusCode.UNIMPLEMENTED: errors.Unimplemented,
    grpc.StatusCode.INTERNAL: errors.Internal,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.DATA_LOSS: errors.Internal,
}

# How gRPC words a stream that ended without an answer, under several codes: a fault of the connection to the
# replica, not of the model.
_BROKEN_STREAM = ("RST_STREAM", "Stream removed")

# How gRPC's server words a refusal; its code, RESOURCE_EXHAUSTED, is also that of a model out of memory. And
# how TensorFlow Serving's batching does; its code, UNAVAILABLE, is also that of a replica that is gone.
_FULL = (
    "Server Threadpool Exhausted",
    "The batch scheduling queue to which this task was submitted is full",
)


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """The state of one version on one replica, and why.

    `state` is START, LOADING, AVAILABLE, UNLOADING or END, and UNKNOWN for anything else; `error_code` is a
    `google.rpc.Code`.
    """

    state: str
    error: str = ""
    error_code: int = 0


class Unary(Protocol):
    """One RPC: its request, the seconds that it may take, the trace that it is part of -> its response."""

    async def __call__(self, message: Any, timeout_s: float, trace: Trace | None = None) -> Any:
        """Make the call; raises SluiceErrors."""


class TensorFlowServing:
    """A client of one replica. Every method takes a time limit in seconds and raises SluiceErrors.

    Args:
        address: `host:port` or `unix:/path`, as gRPC names targets.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._prediction = {
            method: self._unary(protos.PREDICTION_SERVICE, method)
            for method in protos.methods(protos.PREDICTION_SERVICE)
        }
        self._status = self._unary(protos.MODEL_SERVICE, "GetModelStatus")
        self._reload = self._unary(protos.MODEL_SERVICE, "HandleReloadConfigRequest")

    def _unary(self, service: str, method: str) -> Unary:
        request, response = protos.methods(service)[method]
        call = self._channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )

        async def invoke(message: Any, timeout_s: float, trace: Trace | None = None) -> Any:
            metadata = None if trace is None else (("traceparent", trace.traceparent),)
            try:
                answer = await call(message, timeout=max(timeout_s, 0.0), metadata=metadata)
            except grpc.aio.AioRpcError as error:
                raise translate(error) from error
            except (asyncio.CancelledError, grpc.aio.UsageError) as error:
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                    raise
                # Nobody cancelled the caller: its connection was closed, which gRPC reports in two ways.
                text = f"the connection to {self.address} was closed"
                raise errors.Unavailable(text, stage="backend") from error
            if answer is None:  # gRPC has logged why it could not be parsed
                text = (
                    f"{self.address} answered {method} with bytes that are not a {response.DESCRIPTOR.name}"
                )
                raise errors.Unavailable(text, stage="backend")
            return answer

        return invoke

    async def ask(self, method: str, request: Any, timeout_s: float, trace: Trace | None = None) -> Any:
        """Call one of PredictionService's methods, such as `Predict`: its request -> its response.

        The replica is told of the trace that the call is part of, if there is one.
        """
        return await self._prediction[method](request, timeout_s, trace)

    async def predict(self, request: Any, timeout_s: float, trace: Trace | None = None) -> Any:
        """PredictRequest -> PredictResponse."""
        return await self.ask("Predict", request, timeout_s, trace)

    async def signatures(self, model: str, version: int, timeout_s: float) -> dict[str, Any]:
        """The signatures of one version: name -> SignatureDef."""
        request = protos.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = model
        request.model_spec.version.value = version
        response = await self.ask("GetModelMetadata", request, timeout_s)
        unpacked = protos.SignatureDefMap()
        response.metadata["signature_def"].Unpack(unpacked)
        return dict(unpacked.signature_def)

    async def labelled(self, model: str, label: str, timeout_s: float) -> int:
        """The version that a label stands for; raises InvalidInput or FailedPrecondition if it is unknown."""
        request = protos.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = model
        request.model_spec.version_label = label
        response = await self.ask("GetModelMetadata", request, timeout_s)
        return int(response.model_spec.version.value)

    async def status(self, model: str, timeout_s: float) -> dict[int, VersionStatus]:
        """The versions of `model` that the replica knows; empty if it does not know the model."""
        request = protos.GetModelStatusRequest()
        request.model_spec.name = model
        try:
            response = await self._status(request, timeout_s)
        except errors.NotFound:
            return {}
        states = protos.MODEL_VERSION_STATES
        return {
            each.version: VersionStatus(
                states.get(each.state, "UNKNOWN"), each.status.error_message, each.status.error_code
            )
            for each in response.model_version_status
        }

    async def reload_config(self, config: Any, timeout_s: float) -> None:
        """Replace the replica's whole model configuration by `config`, a ModelServerConfig.

        Raises:
            FailedPrecondition: a label points at a version that is not available.
        """
        response = await self._reload(protos.ReloadConfigRequest(config=config), timeout_s)
        if response.status.error_code:
            raise errors.FailedPrecondition(f"{self.address}: {response.status.error_message}")

    async def close(self) -> None:
        """Close the connection; calls in flight, and later ones, raise Unavailable."""
        await self._channel.close()


def translate(error: grpc.aio.AioRpcError) -> errors.SluiceError:
    """The SluiceError for an RPC error of a replica."""
    details = error.details() or f"the replica answered {error.code().name}"
    kind = KIND_OF_STATUS.get(error.code(), errors.Internal)
    if any(text in details for text in _BROKEN_STREAM):
        kind = errors.Unavailable
    if _says_full(details):
        kind = errors.Overloaded
    return kind(details, stage="backend")


def is_full(error: BaseException | None) -> bool:
    """Whether a replica refused a call, without looking at it, because its threads or its queue were full."""
    return isinstance(error, errors.Overloaded) and _says_full(error.message)


def _says_full(details: str) -> bool:
    return any(text in details for text in _FULL)

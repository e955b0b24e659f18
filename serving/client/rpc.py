"""The clients over gRPC."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import grpc
import grpc.aio
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from serving import protos
from serving.client.base import AsyncioClient, BlockingClient
from serving.client.retries import Retries
from serving.client.wire import Question, as_error
from serving.errors import InvalidInput, SluiceError
from serving.gateway_url import authorization, check_target
from serving.prediction import ClassScore, ImageResult, Prediction

_METHOD = f"/{protos.IMAGE_CLASSIFICATION}/Classify"
_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A gateway's node that is gone says nothing. With keepalive on, gRPC has the kernel end a connection on
    # which data has not been acknowledged for its timeout (TCP_USER_TIMEOUT), and the next attempt gets
    # another; without it each would run into its deadline, for a quarter of an hour. The pings themselves are
    # rare enough for any server.
    ("grpc.keepalive_time_ms", 330_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # While gRPC waits to reconnect, requests fail unsent: by default for a second, later for two minutes.
    # Most attempts of `Retries` would not even try to reach a gateway that is back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
_CODING: Any = {
    "request_serializer": protos.ClassifyRequest.SerializeToString,
    "response_deserializer": protos.ClassifyResponse.FromString,
}
# For errors that do not come from a gateway: from gRPC itself, or from a proxy.
_KIND_OF_CODE = {
    grpc.StatusCode.UNAVAILABLE: "unavailable",
    grpc.StatusCode.DEADLINE_EXCEEDED: "deadline-exceeded",
    grpc.StatusCode.CANCELLED: "cancelled",
    grpc.StatusCode.UNIMPLEMENTED: "unimplemented",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "too-large",
    grpc.StatusCode.UNAUTHENTICATED: "unauthenticated",
    grpc.StatusCode.PERMISSION_DENIED: "permission-denied",
}


def _classify_request(question: Question) -> Any:
    if question.version == 0:
        raise InvalidInput("version is 0, which over gRPC stands for the routed one; give None for that")
    try:
        return protos.ClassifyRequest(
            model=question.model or "",
            version=question.version or 0,
            label=question.label or "",
            images=question.images,
            top_k=question.top_k,
        )
    except ValueError as error:  # a number beyond the field's, or a name that is not Unicode
        raise InvalidInput(f"this cannot be sent over gRPC: {error}") from error


def _prediction(response: Any) -> Prediction:
    """The prediction in a response; raises the first image's error if none could be read, as over HTTP."""
    found = Prediction(response.model, response.version, tuple(map(_result, response.results)))
    first = found.results[0].error if found.results else None
    if first is not None and all(each.error for each in found.results):
        try:
            raise first
        finally:
            del first, found  # otherwise the error holds this frame, and this frame the error
    return found


def _result(found: Any) -> ImageResult:
    if found.HasField("error"):
        return ImageResult(error=as_error(found.error.kind, found.error.message))
    classes = tuple(ClassScore(each.label, each.index, each.score) for each in found.classes)
    return ImageResult(classes, prediction_id=found.prediction_id)


def _failure(error: grpc.RpcError) -> SluiceError:
    """The error in a status: its kind from `ErrorInfo`, and when to retry from `RetryInfo`."""
    call: Any = error  # what gRPC raises is a call as well
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    retry_after_s = None
    with contextlib.suppress(ValueError):
        status = rpc_status.from_call(call)
        for detail in status.details if status is not None else ():
            detail.Unpack(info)
            if detail.Unpack(retry):
                retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    kind = info.reason or _KIND_OF_CODE.get(call.code(), "internal")
    text = call.details() or call.code().name
    return as_error(kind, text, stage=info.metadata.get("stage"), retry_after_s=retry_after_s)


class GrpcClient(BlockingClient[Any]):
    """A client over gRPC.

    Args:
        target: where the gateway is: `host:port`.
        api_key: the key or token to send; None: none.
        credentials: for TLS; None: no TLS.
        retries: when to send again.

    Raises:
        InvalidInput: the target is a URL, or the key cannot be one.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:9000",
        *,
        api_key: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        retries: Retries | None = None,
    ) -> None:
        super().__init__(retries)
        self._metadata = tuple(authorization(api_key).items())
        check_target(target)
        if credentials is None:
            self._channel = grpc.insecure_channel(target, options=_OPTIONS)
        else:
            self._channel = grpc.secure_channel(target, credentials, options=_OPTIONS)
        self._call = self._channel.unary_unary(_METHOD, **_CODING)

    def _request(self, question: Question) -> Any:
        return _classify_request(question)

    def _send(self, request: Any, timeout_s: float) -> Prediction:
        try:
            return _prediction(self._call(request, timeout=timeout_s, metadata=self._metadata))
        except grpc.RpcError as error:
            raise _failure(error) from error

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


class AsyncGrpcClient(AsyncioClient[Any]):
    """The same for asyncio, in one event loop. Arguments as `GrpcClient`'s."""

    def __init__(
        self,
        target: str = "127.0.0.1:9000",
        *,
        api_key: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        retries: Retries | None = None,
    ) -> None:
        super().__init__(retries)
        self._metadata = tuple(authorization(api_key).items())
        check_target(target)
        self._target, self._credentials = target, credentials

    @functools.cached_property
    def _channel(self) -> grpc.aio.Channel:
        # It belongs to the event loop in which it is made, and a client may be made before there is one.
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._target, options=_OPTIONS)
        return grpc.aio.secure_channel(self._target, self._credentials, options=_OPTIONS)

    @functools.cached_property
    def _call(self) -> Any:
        return self._channel.unary_unary(_METHOD, **_CODING)

    def _request(self, question: Question) -> Any:
        return _classify_request(question)

    async def _send(self, request: Any, timeout_s: float) -> Prediction:
        try:
            return _prediction(await self._call(request, timeout=timeout_s, metadata=self._metadata))
        except grpc.aio.AioRpcError as error:
            raise _failure(error) from error

    async def aclose(self) -> None:
        """Close the connection."""
        await self._channel.close()

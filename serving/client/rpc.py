"""The clients over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from serving import protos
from serving.client.retries import Retries
from serving.client.wire import DEFAULT_TIMEOUT_S, Image, as_error, check_version, read_all
from serving.errors import SluiceError
from serving.prediction import ClassScore, ImageResult, Prediction

_METHOD = f"/{protos.IMAGE_CLASSIFICATION}/Classify"
_OPTIONS = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
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


def _classify_request(
    images: Image | Sequence[Image],
    model: str | None,
    version: int | None,
    label: str | None,
    top_k: int | None,
) -> Any:
    check_version(version, label)
    return protos.ClassifyRequest(
        model=model or "", version=version or 0, label=label or "", images=read_all(images), top_k=top_k
    )


def _prediction(response: Any) -> Prediction:
    return Prediction(response.model, response.version, tuple(map(_result, response.results)))


def _result(found: Any) -> ImageResult:
    if found.HasField("error"):
        return ImageResult(error=as_error(found.error.kind, found.error.message))
    return ImageResult(tuple(ClassScore(each.label, each.index, each.score) for each in found.classes))


def _failure(error: grpc.RpcError) -> SluiceError:
    """The error in a status: its kind from `ErrorInfo`, and when to come back from `RetryInfo`."""
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


def _metadata(api_key: str | None) -> tuple[tuple[str, str], ...]:
    return () if api_key is None else (("authorization", f"Bearer {api_key}"),)


class GrpcClient:
    """A client over gRPC. Use as a context manager, or `close` it.

    Args:
        target: where the gateway is: `host:port`.
        api_key: the key or token to send; None: none.
        credentials: for TLS; None: no TLS.
        retries: when to send again.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:9000",
        *,
        api_key: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        retries: Retries | None = None,
    ) -> None:
        self._retries = retries or Retries()
        self._metadata = _metadata(api_key)
        if credentials is None:
            self._channel = grpc.insecure_channel(target, options=_OPTIONS)
        else:
            self._channel = grpc.secure_channel(target, credentials, options=_OPTIONS)
        self._call = self._channel.unary_unary(
            _METHOD,
            request_serializer=protos.ClassifyRequest.SerializeToString,
            response_deserializer=protos.ClassifyResponse.FromString,
        )

    def classify(
        self,
        images: Image | Sequence[Image],
        *,
        model: str | None = None,
        version: int | None = None,
        label: str | None = None,
        top_k: int | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Prediction:
        """Classify images; see `Client.classify`."""
        request = _classify_request(images, model, version, label, top_k)
        deadline = time.monotonic() + timeout_s
        attempt = 0
        while True:
            attempt += 1
            left_s = max(deadline - time.monotonic(), 0.001)
            try:
                return _prediction(self._call(request, timeout=left_s, metadata=self._metadata))
            except grpc.RpcError as error:
                failure = _failure(error)
                pause_s = self._retries.pause_s(failure, attempt, deadline - time.monotonic())
                if pause_s is None:
                    raise failure from error
                time.sleep(pause_s)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncGrpcClient:
    """The same for asyncio. Use as an async context manager, or `aclose` it. Arguments as `GrpcClient`'s."""

    def __init__(
        self,
        target: str = "127.0.0.1:9000",
        *,
        api_key: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        retries: Retries | None = None,
    ) -> None:
        self._retries = retries or Retries()
        self._metadata = _metadata(api_key)
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(target, credentials, options=_OPTIONS)
        self._call: Any = self._channel.unary_unary(
            _METHOD,
            request_serializer=protos.ClassifyRequest.SerializeToString,
            response_deserializer=protos.ClassifyResponse.FromString,
        )

    async def classify(
        self,
        images: Image | Sequence[Image],
        *,
        model: str | None = None,
        version: int | None = None,
        label: str | None = None,
        top_k: int | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Prediction:
        """Classify images; see `Client.classify`."""
        request = await asyncio.to_thread(_classify_request, images, model, version, label, top_k)
        deadline = time.monotonic() + timeout_s
        attempt = 0
        while True:
            attempt += 1
            left_s = max(deadline - time.monotonic(), 0.001)
            try:
                return _prediction(await self._call(request, timeout=left_s, metadata=self._metadata))
            except grpc.aio.AioRpcError as error:
                failure = _failure(error)
                pause_s = self._retries.pause_s(failure, attempt, deadline - time.monotonic())
                if pause_s is None:
                    raise failure from error
                await asyncio.sleep(pause_s)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

"""What every RPC of every service has in common: its context from metadata, and errors as statuses."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError

from serving import protos
from serving.access.callers import credential_in
from serving.errors import Internal, InvalidInput, SluiceError, without_frames
from serving.gateway import Gateway
from serving.prediction import RequestContext
from serving.rpc.errors import rich_status
from serving.rpc.streams import Messages, answered_in_order
from serving.settings import Settings
from serving.telemetry.tracing import child_of, request_id_from

_log = structlog.get_logger()

Call = grpc.aio.ServicerContext[Any, Any]
Unary = Callable[[Any, RequestContext], Awaitable[Any]]
"""One request message to one response message, or to its bytes if it is large; raises SluiceErrors."""
Stream = Callable[[AsyncIterator[Any], RequestContext], AsyncIterator[Any]]
"""Request messages to response messages; raises SluiceErrors."""


def service(
    name: str, gateway: Gateway, unary: dict[str, Unary], streams: dict[str, Stream] | None = None
) -> grpc.GenericRpcHandler:
    """What a gRPC server registers for the service `name`: its methods, by their names."""
    types = protos.methods(name)
    handlers = {}
    for method, answer in unary.items():
        request, _ = types[method]
        handlers[method] = grpc.unary_unary_rpc_method_handler(
            _unary(answer, gateway),
            request_deserializer=_parser(request),
            response_serializer=_written,
        )
    for method, answers in (streams or {}).items():
        request, _ = types[method]
        handlers[method] = grpc.stream_stream_rpc_method_handler(
            _stream(answers, gateway),
            request_deserializer=_parser(request),
            response_serializer=_written,
        )
    return grpc.method_handlers_generic_handler(name, handlers)


def _written(response: Any) -> bytes:
    """The bytes of a response. gRPC calls this on the event loop, so large ones come serialized already."""
    written: bytes = response if isinstance(response, bytes) else response.SerializeToString()
    return written


def _parser(message: Any) -> Callable[[bytes], Any]:
    """Bytes to a message, or to an error in its place: what a parser raises, gRPC reports as UNKNOWN."""

    def parse(serialized: bytes) -> Any:
        try:
            return message.FromString(serialized)
        except DecodeError:
            text = f"the {len(serialized)} bytes of the request are not a {message.DESCRIPTOR.full_name}"
            return InvalidInput(text, stage="admission")

    return parse


def _parsed(request: Any, context: RequestContext, gateway: Gateway) -> Any:
    """The message; if there is an error in its place, counts and raises that."""
    if isinstance(request, InvalidInput):
        gateway.journal.refused_early(context.protocol, context.request_id, request)
        raise request
    return request


def _unary(answer: Unary, gateway: Gateway) -> Callable[[Any, Call], Awaitable[Any]]:
    async def handle(request: Any, call: Call) -> Any:
        context = request_context(call, gateway.settings)
        response = None
        try:
            response = await answer(_parsed(request, context, gateway), context)
        except Exception as error:
            failure = without_frames(as_kind(error, context))
        del request  # gRPC aborts a call by an error of its own, which holds the frames that it passes
        if response is None:
            await abort(call, failure, context)
        call.set_trailing_metadata(_trailing(context))
        return response

    return handle


def _stream(answers: Stream, gateway: Gateway) -> Callable[[AsyncIterator[Any], Call], AsyncIterator[Any]]:
    async def handle(requests: AsyncIterator[Any], call: Call) -> AsyncIterator[Any]:
        context = request_context(call, gateway.settings)
        failure = None
        # gRPC's own iterator would keep each message until the next one arrives.
        read = requests.read if isinstance(requests, Messages) else call.read
        parsed = Messages(read, lambda request: _parsed(request, context, gateway))
        try:
            async for response in answers(parsed, context):
                yield response
        except grpc.aio.AbortError:  # it was aborted while a message was being received
            raise
        except Exception as error:
            failure = without_frames(as_kind(error, context))
        if failure is not None:
            await abort(call, failure, context)
        call.set_trailing_metadata(_trailing(context))

    return handle


def as_kind(error: Exception, context: RequestContext) -> SluiceError:
    """The error itself if it is one of Sluice's; anything else is a fault of Sluice, and logged."""
    if isinstance(error, SluiceError):
        return error
    _log.error("a request failed unexpectedly", request_id=context.request_id, exc_info=error)
    return Internal("the request failed unexpectedly; the log says how")


async def abort(call: Call, error: SluiceError, context: RequestContext) -> None:
    """End a call with an error's status; raises grpc's AbortError, which must reach grpc."""
    await call.abort_with_status(rich_status(error, _trailing(context)))


def _trailing(context: RequestContext) -> tuple[tuple[str, str], ...]:
    return ("x-request-id", context.request_id), ("traceparent", context.trace.traceparent)


def request_context(call: Call, settings: Settings) -> RequestContext:
    """Who asks, and until when: the call's deadline, at most the default."""
    metadata = {str(key): str(value) for key, value in call.invocation_metadata() or ()}
    request_id = request_id_from(metadata.get("x-request-id", ""))
    remaining_s = call.time_remaining()
    timeout_s = settings.request_timeout_s
    if remaining_s is not None:
        timeout_s = min(remaining_s, timeout_s)
    return RequestContext(
        request_id=request_id,
        protocol="grpc",
        deadline=time.monotonic() + timeout_s,
        routing_key=metadata.get(settings.routing_header, request_id),
        credential=credential_in(metadata),
        trace=child_of(metadata.get("traceparent", ""), settings.recorded_share),
    )


async def each_answered(
    requests: AsyncIterator[Any],
    context: RequestContext,
    gateway: Gateway,
    answer: Unary,
    failed: Callable[[SluiceError, Any], Any],
) -> AsyncGenerator[Any, None]:
    """The answers to a stream's requests, in their order; each has its own deadline, and may fail alone.

    Args:
        requests: the requests.
        context: the stream's.
        gateway: whose stream it is.
        answer: answers one of them.
        failed: makes the answer to a request that failed.

    Raises:
        Unauthenticated, PermissionDenied: the caller may not classify; no message is read.
    """
    _check_caller(context, gateway)

    async def answered(request: Any) -> Any:
        try:
            return await answer(request, next_message(context, gateway.settings.request_timeout_s))
        except Exception as error:
            return failed(without_frames(as_kind(error, context)), request)

    async with aclosing(answered_in_order(requests, answered)) as answers:
        async for response in answers:
            yield response


def _check_caller(context: RequestContext, gateway: Gateway) -> None:
    """Refuse a stream, before its first message is read, if its caller may not classify; count the refusal.

    Raises:
        Unauthenticated, PermissionDenied: the caller may not classify.
    """
    try:
        gateway.admission.authorize(context.credential, "classify")
    except SluiceError as error:
        gateway.journal.refused_early(context.protocol, context.request_id, error)
        raise


def next_message(context: RequestContext, timeout_s: float) -> RequestContext:
    """The context of one message of a stream: its own deadline, and its own start."""
    now = time.monotonic()
    return RequestContext(
        request_id=context.request_id,
        protocol=context.protocol,
        deadline=now + timeout_s,
        routing_key=context.routing_key,
        credential=context.credential,
        trace=context.trace,
        started=now,
    )

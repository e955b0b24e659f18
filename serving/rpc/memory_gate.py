"""The gate that a call passes before its message is read, if the process has a memory limit.

By itself grpc.aio reads the message of a unary call before any of Sluice's code sees the call. A stream of
one message looks the same on the wire, and is read by its handler: so unary methods are served as such
streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import grpc.aio

from serving.errors import InvalidInput, Overloaded, SluiceError, without_frames
from serving.gateway import Gateway
from serving.pressure import ExpectedSizes, Pressure, Read
from serving.rpc.call import Call, abort, request_context
from serving.rpc.streams import Messages

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Answer = Callable[[Any, Call], Awaitable[Any]]

# gRPC's own services: health is asked for precisely when things are bad.
_ESSENTIAL = "/grpc."
_LOOK_S = 0.01
# Several large messages are read in this time; a waiting call holds only what flow control lets it send.
_WAIT_S = 1.0
_MOST_WAITING = 256


class MemoryGate(grpc.aio.ServerInterceptor):
    """Refuses calls before their messages are read while memory is short, and gives up some that are read.

    Args:
        gateway: whose calls they are.
        pressure: its memory.
    """

    def __init__(self, gateway: Gateway, pressure: Pressure) -> None:
        self._gateway = gateway
        self._pressure = pressure
        self._gated: dict[str, Handler] = {}
        self._looking = False
        self._waiting: deque[tuple[asyncio.Future[None], int | None]] = deque()
        self._expected = ExpectedSizes()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The method's handler, behind the gate."""
        method = handler_call_details.method
        found = self._gated.get(method)
        if found is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            found = self._gated[method] = self._behind_gate(handler, method.startswith(_ESSENTIAL))
        return found

    def _behind_gate(self, handler: Any, essential: bool) -> Handler:
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._many_to_many(handler, essential), None, handler.response_serializer
            )
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._one(handler, handler.unary_stream, essential), None, handler.response_serializer
            )
        return grpc.stream_unary_rpc_method_handler(
            self._one(handler, handler.unary_unary, essential), None, handler.response_serializer
        )

    def _one(self, handler: Any, answer: Callable[..., Awaitable[Any]], essential: bool) -> Answer:
        """A handler for one message. Those that stream answers must write them themselves, not yield them."""

        async def handle(_messages: Any, call: Call) -> Any:
            await self._enter(call, essential)
            message = await self._read(call)
            try:
                if message is grpc.aio.EOF:
                    raise InvalidInput("the call ended without a message", stage="admission")
                with self._pressure.working(len(message)):
                    request = [handler.request_deserializer(message)]
                    del message
                    return await answer(request.pop(), call)  # unnamed, so that no error's frames keep it
            except SluiceError as error:
                refusal = without_frames(error)
            return await self._refuse(call, refusal)

        return handle

    def _many_to_many(self, handler: Any, essential: bool) -> Callable[[Any, Call], AsyncIterator[Any]]:
        async def handle(_messages: Any, call: Call) -> AsyncIterator[Any]:
            await self._enter(call, essential)
            async for response in handler.stream_stream(self._messages(call, handler), call):
                yield response

        return handle

    def _messages(self, call: Call, handler: Any) -> Messages:
        """A stream's messages; while memory is short they wait, by gRPC's flow control, at the client."""
        has_brought = False

        async def read() -> Any:
            nonlocal has_brought
            while has_brought and not self._pressure.has_room(
                time.monotonic(), self._expected.of(call.peer())
            ):
                self._pressure.short.set()
                await asyncio.sleep(_LOOK_S)
            has_brought = True
            message = await self._read(call, stream=True)
            return message if message is grpc.aio.EOF else handler.request_deserializer(message)

        return Messages(read)

    async def _enter(self, call: Call, essential: bool) -> None:
        """Wait for room, or refuse the call if there is none, or too little memory to wait for any."""
        if essential:
            return
        expected_bytes = self._expected.of(call.peer())
        try:
            self._pressure.check(time.monotonic())
            if self._waiting or not self._pressure.has_room(time.monotonic(), expected_bytes):
                await self._room(expected_bytes)
        except Overloaded as error:
            refusal = error
        else:
            return
        await self._refuse(call, refusal)

    async def _room(self, expected_bytes: int | None) -> None:
        """Wait for room, in turn; raises Overloaded if it takes too long, or too many wait."""
        if len(self._waiting) >= _MOST_WAITING:
            raise self._pressure.too_short()
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, expected_bytes))
        self._look_soon()
        try:
            async with asyncio.timeout(_WAIT_S):
                await turn
        except TimeoutError:
            raise self._pressure.too_short() from None

    def _let_in(self) -> None:
        """Wake the first call that waits, if there is room. It takes its room when it runs."""
        while self._waiting and self._waiting[0][0].done():
            self._waiting.popleft()
        if self._waiting and self._pressure.has_room(time.monotonic(), self._waiting[0][1]):
            self._waiting.popleft()[0].set_result(None)

    async def _read(self, call: Call, *, stream: bool = False) -> Any:
        """The next message as bytes, or EOF.

        A read that is given up is not cancelled, since grpc would then never free what has come: the call is
        ended, and the read with it.
        """
        endings: list[asyncio.Task[None]] = []

        def give_up(error: Overloaded) -> None:
            endings.append(asyncio.ensure_future(self._end(call, error)))

        peer = call.peer()
        read = Read(time.monotonic(), give_up, self._expected.of(peer), stream=stream)
        self._pressure.begin(read)
        self._look_soon()
        self._let_in()
        size_bytes = None
        try:
            message = await call.read()
            if message is not grpc.aio.EOF:
                size_bytes = len(message)
                self._expected.came(peer, size_bytes)
        finally:
            self._pressure.end(read, size_bytes, time.monotonic())
            self._let_in()
        if endings:  # it was given up just as it came
            await endings[0]
            await call.read()  # raises what ended the call
        return message

    async def _end(self, call: Call, error: Overloaded) -> None:
        with contextlib.suppress(grpc.aio.BaseError):  # AbortError, or the client has ended the call itself
            await self._refuse(call, error)

    async def _refuse(self, call: Call, error: SluiceError) -> None:
        context = request_context(call, self._gateway.settings)
        self._gateway.journal.refused_early("grpc", context.request_id, error)
        await abort(call, error, context)

    def _look_soon(self) -> None:
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        self._looking = False
        self._pressure.give_up()
        self._let_in()
        if self._pressure.reading or self._waiting:
            self._look_soon()

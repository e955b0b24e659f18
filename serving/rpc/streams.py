"""Streams of requests, answered in their order while several are worked on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, Self

import grpc.aio

from serving.errors import without_frames

# How many are worked on, or wait to be read by the client, at once: enough to fill a batch.
WINDOW = 16


class Messages(AsyncIterator[Any]):
    """The messages of a stream as they arrive. None is kept: a stream may idle for long after a large one.

    Args:
        read: returns the next message, and `grpc.aio.EOF` after the last.
        made: converts each message.
    """

    def __init__(
        self, read: Callable[[], Awaitable[Any]], made: Callable[[Any], Any] = lambda message: message
    ) -> None:
        self.read = read
        self._made = made

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        message = await self.read()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return self._made(message)


async def answered_in_order(
    requests: AsyncIterator[Any], answer: Callable[[Any], Awaitable[Any]]
) -> AsyncGenerator[Any, None]:
    """An answer for each request, in their order; at most `WINDOW` at once.

    Back-pressure: while the client does not read its answers no more requests are read, so that gRPC's flow
    control fills up and not this process. `answer` itself turns failures into answers.
    """
    tasks: asyncio.Queue[asyncio.Task[Any] | None] = asyncio.Queue(WINDOW)
    started: set[asyncio.Task[Any]] = set()

    async def read() -> None:
        async for request in requests:
            task = asyncio.ensure_future(_alone(answer, request))
            del request  # otherwise it would be kept until the next one arrives
            started.add(task)
            task.add_done_callback(started.discard)
            await tasks.put(task)
        await tasks.put(None)

    reader = asyncio.ensure_future(read())
    try:
        while (task := await _next(tasks, reader)) is not None:
            yield await task
    finally:
        reader.cancel()
        for each in tuple(started):
            each.cancel()


async def _alone(answer: Callable[[Any], Awaitable[Any]], request: Any) -> Any:
    """The answer, in a task of its own.

    A cancelled task keeps its error, and with it the frames that the error passed. That of `asyncio.timeout`
    refers to the task: the cycle would stay until the garbage collector runs.
    """
    try:
        return await answer(request)
    except asyncio.CancelledError as error:
        without_frames(error)
        raise


async def _next(
    tasks: asyncio.Queue[asyncio.Task[Any] | None], reader: asyncio.Future[None]
) -> asyncio.Task[Any] | None:
    """The next task; raises the reader's error, if it failed."""
    if not tasks.empty():
        return tasks.get_nowait()
    waiting = asyncio.ensure_future(tasks.get())
    try:
        await asyncio.wait((waiting, reader), return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        await reader
        return tasks.get_nowait()
    finally:
        waiting.cancel()

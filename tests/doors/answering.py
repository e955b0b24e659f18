"""A server that answers the Python client over HTTP as a test says, and what the client makes of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from serving.client import AsyncClient, Client, Retries
from serving.prediction import Prediction
from tests.support.http import grey_png


@asynccontextmanager
async def answering(answer: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[str]:
    """A server that answers as a test says once the head of a request has come; its address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            await answer(writer)
            await reader.read()  # until the client leaves
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield "http://{}:{}".format(*server.sockets[0].getsockname())


async def asked(
    kind: type[Client | AsyncClient], url: str, timeout_s: float = 60.0, images: Sequence[bytes] = ()
) -> Prediction:
    """What a client of this kind is answered, once; it asks of a small image unless others are given."""
    once = Retries(attempts=1)
    images = images or [grey_png(1)]
    if issubclass(kind, AsyncClient):
        async with kind(url, retries=once) as client:
            return await client.classify(images, timeout_s=timeout_s)
    with kind(url, retries=once) as blocking:
        return await asyncio.to_thread(blocking.classify, images, timeout_s=timeout_s)

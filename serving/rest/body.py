"""Reading a request's body: within limits of size and of time, and unpacked where it was compressed."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import AsyncGenerator, Iterator

from starlette.types import Receive, Scope

from serving.admission import Ticket
from serving.errors import Cancelled, DeadlineExceeded, InvalidInput, TooLarge, UnsupportedMedia
from serving.prediction import RequestContext
from serving.rest.context import headers_of
from serving.settings import Settings

ENCODINGS = ("gzip", "deflate", "identity")
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_STEP_BYTES = 256 * 2**10


async def read_body(
    scope: Scope, receive: Receive, ticket: Ticket, context: RequestContext, settings: Settings
) -> bytes:
    """The whole body, unpacked; raises as `read_chunks` does."""
    return b"".join([chunk async for chunk in read_chunks(scope, receive, ticket, context, settings)])


async def read_chunks(
    scope: Scope, receive: Receive, ticket: Ticket, context: RequestContext, settings: Settings
) -> AsyncGenerator[bytes, None]:
    """The body's chunks, unpacked. Room is taken as they come: a length that is only claimed costs nothing.

    Raises:
        UnsupportedMedia: a content encoding that is not taken.
        TooLarge: more than `max_body_bytes`, found from `Content-Length` or while reading or unpacking.
        InvalidInput: what should be compressed is not.
        Overloaded: the gateway holds too many bytes.
        DeadlineExceeded: the body comes too slowly, or the deadline passed.
        Cancelled: the client went away.
    """
    headers = headers_of(scope)
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ENCODINGS:
        raise UnsupportedMedia(
            f'the content encoding is "{encoding}"; taken are {", ".join(ENCODINGS)}', stage="admission"
        )
    claimed = headers.get("content-length", "")
    if claimed.isascii() and claimed.isdigit() and int(claimed) > settings.max_body_bytes:
        raise _too_large(f"{int(claimed):,} bytes", settings.max_body_bytes)
    unpacker = None if encoding == "identity" else Unpacker(encoding)
    size_bytes = 0
    async for received in _received(scope, receive, context, settings):
        for chunk in (received,) if unpacker is None else unpacker.feed(received):
            size_bytes += len(chunk)
            if size_bytes > settings.max_body_bytes:
                raise _too_large(f"over {settings.max_body_bytes:,} bytes", settings.max_body_bytes)
            ticket.hold(len(chunk))
            if chunk:
                yield chunk
    if unpacker is not None:
        unpacker.finish()


async def _received(
    scope: Scope, receive: Receive, context: RequestContext, settings: Settings
) -> AsyncGenerator[bytes, None]:
    """What comes in, as long as it comes fast enough."""
    started = time.monotonic()
    size_bytes = 0
    while True:
        patience_s = settings.body_grace_s + size_bytes / settings.min_body_bytes_per_s
        latest = min(started + patience_s, context.deadline)
        try:
            async with asyncio.timeout(latest - time.monotonic()):
                message = await receive()
        except TimeoutError:
            raise _too_slow(context, settings) from None
        if message["type"] == "http.disconnect":
            raise Cancelled("the client went away before its request was complete", stage="admission")
        chunk = message.get("body", b"")
        size_bytes += len(chunk)
        last = not message.get("more_body", False)
        if last:
            scope["state"]["body_read"] = True
        yield chunk
        if last:
            return


def _too_slow(context: RequestContext, settings: Settings) -> DeadlineExceeded:
    if time.monotonic() >= context.deadline:
        return DeadlineExceeded("the deadline passed before the body had come", stage="admission")
    return DeadlineExceeded(
        f"the body came slower than {settings.min_body_bytes_per_s} bytes a second for "
        f"{settings.body_grace_s:g} s",
        stage="admission",
    )


def _too_large(size: str, max_body_bytes: int) -> TooLarge:
    return TooLarge(f"the body has {size}; at most {max_body_bytes:,} are taken", stage="admission")


class Unpacker:
    """Undoes gzip (RFC 1952) or deflate (in HTTP: zlib, RFC 1950) in steps, so that its user can stop.

    Args:
        encoding: what it is called in errors.
    """

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._zlib = zlib.decompressobj(_GZIP_OR_ZLIB)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What `data` unpacks to; raises InvalidInput if it is damaged."""
        if data and self._zlib.eof:
            raise InvalidInput(f"the {self._encoding} body goes on behind its end", stage="decode")
        while data:
            try:
                unpacked = self._zlib.decompress(data, _STEP_BYTES)
            except zlib.error as error:
                raise InvalidInput(f"the body is not {self._encoding}: {error}", stage="decode") from None
            yield unpacked
            if self._zlib.unused_data:
                raise InvalidInput(f"the {self._encoding} body goes on behind its end", stage="decode")
            data = self._zlib.unconsumed_tail

    def finish(self) -> None:
        """Say that all has come; raises InvalidInput if it ended early."""
        if not self._zlib.eof:
            raise InvalidInput(f"the {self._encoding} body ends before its end", stage="decode")

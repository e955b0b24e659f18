"""Reads a request's body within limits of size and time, and unpacks it if it is compressed."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import AsyncGenerator, Iterator, Sequence

from starlette.types import Message, Receive, Scope

from serving.admission import Ticket
from serving.errors import Cancelled, DeadlineExceeded, InvalidInput, TooLarge, UnsupportedMedia
from serving.prediction import RequestContext
from serving.rest.context import headers_of
from serving.settings import Settings

ENCODINGS = ("gzip", "x-gzip", "deflate", "identity")  # x-gzip is gzip (RFC 9110, 8.4.1.3)
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_GZIP = 16 + zlib.MAX_WBITS
_GZIP_ID = b"\x1f"
# Tools that compress in pieces put 64 kB or more into each; an empty member of 20 bytes takes time, too.
MOST_MEMBERS = 4096
_STEP_BYTES = 256 * 2**10
_FED_BYTES = 16 * 2**10  # at a time: what follows the end of a member is copied
# For routes that read their bodies before they know who calls: feedback with a thousand labels is 200 kB, a
# plan one or two.
MOST_UNADMITTED_BYTES = 2**20


class Pieces:
    """One request's body as it comes, piece by piece and in time.

    Args:
        scope: the request's; `body_here` in its state says that all of it is here.
        receive: where it comes from.
        deadline: when it is of no more use, on the monotonic clock.
        settings: how slow it may be.

    Attributes:
        complete: whether all of it has been read.
    """

    def __init__(self, scope: Scope, receive: Receive, deadline: float, settings: Settings) -> None:
        self._scope = scope
        self._receive = receive
        self._deadline = deadline
        self._settings = settings
        self._started = time.monotonic()
        self._received_bytes = 0
        self.complete = False

    async def next(self) -> bytes:
        """The next piece, if it comes fast enough.

        Raises:
            DeadlineExceeded: it comes too slowly, or the deadline passed.
            Cancelled: the client went away.
        """
        state = self._scope["state"]
        if state.get("body_here", False):
            message = await self._receive()  # at once: a timer would cost more
        else:
            message = await self._in_time()
        if message["type"] == "http.disconnect":
            raise Cancelled("the client went away before its request was complete", stage="admission")
        received: bytes = message.get("body", b"")
        self._received_bytes += len(received)
        if not message.get("more_body", False):
            self.complete = state["body_here"] = True
        return received

    async def _in_time(self) -> Message:
        patience_s = self._settings.body_grace_s + self._received_bytes / self._settings.min_body_bytes_per_s
        latest = min(self._started + patience_s, self._deadline)
        try:
            async with asyncio.timeout(latest - time.monotonic()):
                return await self._receive()
        except TimeoutError:
            raise self._too_slow() from None

    def _too_slow(self) -> DeadlineExceeded:
        if time.monotonic() >= self._deadline:
            return DeadlineExceeded("the deadline passed before the whole body had come", stage="admission")
        return DeadlineExceeded(
            f"the body came slower than {self._settings.min_body_bytes_per_s} bytes a second for "
            f"{self._settings.body_grace_s:g} s",
            stage="admission",
        )


def _encoding_of(scope: Scope, taken: Sequence[str]) -> str:
    """The content encoding of a body; raises UnsupportedMedia unless it is one of `taken`."""
    encoding = headers_of(scope).get("content-encoding", "identity").strip().lower()
    if encoding not in taken:
        text = f'the content encoding is "{encoding}"; supported are {", ".join(taken)}'
        raise UnsupportedMedia(text, stage="admission")
    return encoding


def small(scope: Scope, receive: Receive, settings: Settings) -> Receive:
    """A `receive` for an app that reads bodies itself: at most `MOST_UNADMITTED_BYTES`, and in time.

    It raises what `Body.chunks` raises, and UnsupportedMedia for a compressed body.
    """
    pieces = Pieces(scope, receive, time.monotonic() + settings.request_timeout_s, settings)
    most_bytes = min(MOST_UNADMITTED_BYTES, settings.max_body_bytes)
    received_bytes = 0

    async def receive_little() -> Message:
        nonlocal received_bytes
        if pieces.complete:
            return await receive()  # tells when the client leaves
        _encoding_of(scope, ("identity",))
        piece = await pieces.next()
        received_bytes += len(piece)
        if received_bytes > most_bytes:
            raise _too_large(f"over {most_bytes:,} bytes", most_bytes)
        return {"type": "http.request", "body": piece, "more_body": not pieces.complete}

    return receive_little


class Body:
    """One request's body. Room is taken as it comes in: a `Content-Length` alone costs nothing.

    Args:
        scope: the request's; `body_here` in its state says that all of it is here.
        receive: where it comes from.
        ticket: takes the room.
        context: the request's; its deadline holds.
        settings: limits of size and of time.

    Raises:
        UnsupportedMedia: the content encoding is not supported.
        TooLarge: `Content-Length` is more than `max_body_bytes`.
    """

    def __init__(
        self, scope: Scope, receive: Receive, ticket: Ticket, context: RequestContext, settings: Settings
    ) -> None:
        self._pieces = Pieces(scope, receive, context.deadline, settings)
        self._ticket = ticket
        self._max_body_bytes = settings.max_body_bytes
        encoding = _encoding_of(scope, ENCODINGS)
        claimed = headers_of(scope).get("content-length", "")
        if claimed.isascii() and claimed.isdigit() and int(claimed) > settings.max_body_bytes:
            raise _too_large(f"{int(claimed):,} bytes", settings.max_body_bytes)
        self._unpacker = None if encoding == "identity" else Unpacker(encoding)
        self._unpacked_bytes = 0

    async def whole(self) -> bytes:
        """All of it, unpacked; raises as `chunks` does."""
        if self._unpacker is not None:
            return b"".join([piece async for piece in self.chunks()])
        pieces: list[bytes] = []
        while not self._pieces.complete:
            pieces += self._unpacked(await self._pieces.next())
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body piece by piece, unpacked.

        Raises:
            TooLarge: it has more than `max_body_bytes`, as it came or unpacked.
            InvalidInput: it is not compressed as it says.
            Overloaded: the gateway holds too many bytes.
            DeadlineExceeded: the body comes too slowly, or the deadline passed.
            Cancelled: the client went away.
        """
        while not self._pieces.complete:
            for piece in self._unpacked(await self._pieces.next()):
                yield piece
                if self._unpacker is not None:  # a few kilobytes may unpack to megabytes, while others wait
                    await asyncio.sleep(0)

    def _unpacked(self, received: bytes) -> Iterator[bytes]:
        """What was received, unpacked, and with room taken for it."""
        for piece in (received,) if self._unpacker is None else self._unpacker.feed(received):
            self._unpacked_bytes += len(piece)
            if self._unpacked_bytes > self._max_body_bytes:
                raise _too_large(f"over {self._max_body_bytes:,} bytes", self._max_body_bytes)
            self._ticket.hold(len(piece))
            if piece:
                yield piece
        if self._pieces.complete and self._unpacker is not None:
            self._unpacker.finish()


def _too_large(size: str, max_body_bytes: int) -> TooLarge:
    return TooLarge(f"the body has {size}; at most {max_body_bytes:,} are allowed", stage="admission")


class Unpacker:
    """Unpacks gzip (RFC 1952) or deflate (in HTTP: zlib, RFC 1950) in steps, so that its user can stop early.

    What was compressed piece by piece, as by pigz or `cat a.gz b.gz`, has several gzip members.

    Args:
        encoding: what it is called in errors.
    """

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._zlib = zlib.decompressobj(_GZIP_OR_ZLIB)
        self._members = 1

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What `data` unpacks to; raises InvalidInput if it is damaged."""
        for start in range(0, len(data), _FED_BYTES):
            rest = data[start : start + _FED_BYTES]
            while rest:
                if self._zlib.eof:
                    self._begin_member(rest)
                try:
                    unpacked = self._zlib.decompress(rest, _STEP_BYTES)
                except zlib.error as error:
                    text = f"the body is not {self._encoding}: {error}"
                    raise InvalidInput(text, stage="decode") from None
                yield unpacked
                rest = self._zlib.unused_data or self._zlib.unconsumed_tail

    def _begin_member(self, data: bytes) -> None:
        """Start the next gzip member; raises InvalidInput if `data` does not begin one, or one too many."""
        if self._encoding == "deflate" or not data.startswith(_GZIP_ID):
            raise InvalidInput(f"the {self._encoding} body has data after its end", stage="decode")
        if self._members == MOST_MEMBERS:
            raise InvalidInput(f"the {self._encoding} body has over {MOST_MEMBERS:,} members", stage="decode")
        self._members += 1
        self._zlib = zlib.decompressobj(_GZIP)

    def finish(self) -> None:
        """There is no more data; raises InvalidInput if the body ended early."""
        if not self._zlib.eof:
            raise InvalidInput(f"the {self._encoding} body is truncated", stage="decode")

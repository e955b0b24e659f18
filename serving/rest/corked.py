"""A transport that sends what is written in one turn of the event loop as one piece.

uvicorn writes the head of an answer and its body one after the other. Each write is a system call, which
hands the interpreter lock to a decoding thread and wakes the client up.
"""

from __future__ import annotations

import asyncio
from typing import Any

# More than this is written right away: the transport below must see it to pause its writer in time.
MOST_BYTES = 64 * 2**10


class CorkedTransport:
    """Wraps another transport; everything but writing is left to that one.

    Args:
        transport: what sends.
        loop: the event loop that it belongs to.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._pieces: list[bytes | bytearray | memoryview] = []
        self._size_bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Whether it is closed, or about to be; called several times per request, so it is kept fast."""
        return self._transport.is_closing()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send these bytes, at the latest before the event loop waits."""
        if not self._pieces:
            self._loop.call_soon(self._flush)
        self._pieces.append(data)
        self._size_bytes += len(data)
        if self._size_bytes > MOST_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._pieces:
            return
        if not self._transport.is_closing():
            self._transport.write(b"".join(self._pieces))
        self._pieces.clear()
        self._size_bytes = 0

    def write_eof(self) -> None:
        """Send what is left, and then end-of-file."""
        self._flush()
        self._transport.write_eof()

    def close(self) -> None:
        """Send what is left, and close."""
        self._flush()
        self._transport.close()

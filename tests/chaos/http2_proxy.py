"""A proxy for HTTP/2 that knows where frames begin (RFC 9113, 4.1), and does harm to each so-many-th call."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Harm = Literal["half a message", "wrong bytes", "reset", "goaway", "stream reset"]

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _GOAWAY = 0x0, 0x1, 0x3, 0x7
_INTERNAL_ERROR = 0x2
_GRPC_PREFIX_BYTES = 5  # whether compressed, and the message's length


class Frame(NamedTuple):
    """One frame."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    def __bytes__(self) -> bytes:
        head = struct.pack(">I", len(self.payload))[1:] + bytes((self.kind, self.flags))
        return head + struct.pack(">I", self.stream) + self.payload


async def read_frame(reader: asyncio.StreamReader) -> Frame:
    """The next frame; raises IncompleteReadError at the end."""
    head = await reader.readexactly(9)
    length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
    stream = int.from_bytes(head[5:], "big") & 0x7FFFFFFF
    return Frame(kind, flags, stream, await reader.readexactly(length))


@dataclass(eq=False)
class _Connection:
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    doomed: set[int] = field(default_factory=set)

    def reset(self) -> None:
        """Close with a reset: on, and for no time, a close does not linger."""
        self.client.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\1" + 7 * b"\0"
        )
        self.client.transport.abort()
        self.server.transport.abort()

    def close(self) -> None:
        """Close both sides once what was written has been sent."""
        self.client.close()
        self.server.close()


class HarmfulProxy:
    """Passes calls on to `target`, and does `harm` to each call whose number `every` divides.

    Args:
        target: host and port.
        harm: what to do.
        every: to which calls.

    Attributes:
        calls: how many calls began.
        harmed: how many of them met harm.
        address: where it listens, once it does.
    """

    def __init__(self, target: str, harm: Harm, every: int) -> None:
        self._target = target.rsplit(":", 1)
        self._harm = harm
        self._every = every
        self._open: set[_Connection] = set()
        self.calls = 0
        self.harmed = 0
        self.address = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[HarmfulProxy]:
        """Listen while the block runs."""
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            try:
                yield self
            finally:
                for each in list(self._open):
                    each.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(*self._target)
        connection = _Connection(writer, server_writer)
        self._open.add(connection)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            server_writer.write(await reader.readexactly(len(_PREFACE)))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._requests(reader, connection))
                tasks.create_task(self._answers(server_reader, connection))
        self._open.discard(connection)
        connection.close()

    async def _requests(self, reader: asyncio.StreamReader, connection: _Connection) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                frame = await read_frame(reader)
                if frame.kind == _HEADERS:
                    self.calls += 1
                    if self.calls % self._every == 0:
                        self.harmed += 1
                        self._harm_request(frame, connection)
                connection.server.write(bytes(frame))
        connection.close()

    def _harm_request(self, frame: Frame, connection: _Connection) -> None:
        if self._harm == "reset":
            connection.reset()
        elif self._harm == "goaway":  # this call, it says, was not begun
            last = struct.pack(">II", max(frame.stream - 2, 0), 0)
            connection.client.write(bytes(Frame(_GOAWAY, 0, 0, last)))
        else:
            connection.doomed.add(frame.stream)

    async def _answers(self, reader: asyncio.StreamReader, connection: _Connection) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                frame = await read_frame(reader)
                doomed = frame.kind == _DATA and frame.stream in connection.doomed
                connection.client.write(self._spoilt(frame) if doomed else bytes(frame))
                if doomed and self._harm == "half a message":
                    break
                connection.doomed -= {frame.stream} if doomed else set()
        connection.close()

    def _spoilt(self, answer: Frame) -> bytes:
        if self._harm == "half a message":
            whole = bytes(answer)
            return whole[: len(whole) // 2]
        if self._harm == "stream reset":
            return bytes(Frame(_RST_STREAM, 0, answer.stream, struct.pack(">I", _INTERNAL_ERROR)))
        garbage = b"\xff" * (len(answer.payload) - _GRPC_PREFIX_BYTES)
        return bytes(answer._replace(payload=answer.payload[:_GRPC_PREFIX_BYTES] + garbage))

"""An HTTP/1.1 client of a few lines: posts bodies one after the other over one connection a client."""

from __future__ import annotations

import asyncio
import itertools
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.bench.load import Load, closed_loop
from tests.bench.photos import bodies


class Connection:
    """A connection that stays open.

    Args:
        url: where to post.
        headers: of each request.
    """

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname, parts.port
        lines = [f"POST {parts.path} HTTP/1.1", f"Host: {parts.netloc}"]
        self._head = "\r\n".join(lines + [f"{name}: {value}" for name, value in headers.items()])
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, body: bytes) -> int:
        """The status of the answer, read to its end."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        writer.write(f"{self._head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        if length := re.search(r"(?im)^content-length: *(\d+)", head):
            await reader.readexactly(int(length[1]))
        else:
            await self._read_chunks(reader)
        return int(head.split(maxsplit=2)[1])

    async def _read_chunks(self, reader: asyncio.StreamReader) -> None:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            await reader.readexactly(size + 2)
        await reader.readuntil(b"\r\n")

    def close(self) -> None:
        """Close it."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def post(about: dict[str, Any]) -> dict[str, Load]:
    """A round of load, as `about` says; its only name is empty."""
    turn = itertools.cycle(bodies(Path(about["folder"])))
    connections = [Connection(about["url"], about["headers"]) for _ in range(about["clients"])]

    async def call(client: int) -> bool:
        try:
            return await connections[client].post(next(turn)) == 200
        except (OSError, asyncio.IncompleteReadError):
            connections[client].close()
            return False

    found = await closed_loop(call, about["clients"], about["seconds"])
    for each in connections:
        each.close()
    return {"": found.load(1, 0.0)}

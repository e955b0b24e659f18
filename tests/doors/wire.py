"""Talking to a port in raw bytes."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from serving.main import Running


def port_of(running: Running) -> int:
    """The port of the HTTP API."""
    port = urlsplit(running.http_url).port
    assert port is not None
    return port


async def exchange(port: int, sent: bytes, *, timeout_s: float = 60) -> bytes:
    """Send bytes, and read until the other side closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        async with asyncio.timeout(timeout_s):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def statuses(answers: bytes) -> list[int]:
    """The status of each response in a connection's bytes."""
    return [int(part[:3]) for part in answers.split(b"HTTP/1.1 ")[1:]]

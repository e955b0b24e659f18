"""Talking to a port in raw bytes."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import httpx

from serving.main import Running
from tests.support.http import grey_png

PATH = "/v1/models/digits:classify"
PNG = {"content-type": "image/png"}
# A request's head up to where the length of its body is said.
HEAD = b"POST " + PATH.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
CLOSE = b"Connection: close\r\n"
MIB = 2**20


async def classified(client: httpx.AsyncClient) -> bool:
    """Whether the gateway still answers an ordinary request."""
    answer = await client.post(PATH, content=grey_png(200), headers=PNG)
    assert answer.status_code == 200, answer.text
    return bool(answer.json()["results"][0]["classes"][0]["label"] == "class-7")


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

"""The end of the HTTP server."""

from __future__ import annotations

import asyncio

import httpx
from starlette.applications import Starlette

from serving.rest.server import HttpServer, listen
from serving.rest.unread import Unread
from serving.settings import Settings

TURNS = 20  # of the event loop; none of them waits


async def test_a_server_that_nobody_asks_ends_without_waiting() -> None:
    listener = listen("127.0.0.1", 0)
    server = HttpServer(Starlette(), Settings(), None, Unread(Settings().max_in_flight_bytes))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
        answer = await client.get("/", headers={"connection": "close"})
    assert answer.status_code == 404
    assert answer.headers["date"].endswith(" GMT")
    await server.drain(listener)
    for _ in range(TURNS):
        await asyncio.sleep(0)
    assert serving.done()
    await serving
    assert listener.fileno() == -1

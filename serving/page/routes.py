"""The page's routes: `/`, its files under `/page/`, and `/page/state`."""

from __future__ import annotations

import asyncio

import orjson
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from serving.access.callers import credential_in
from serving.errors import SluiceError
from serving.gateway import Gateway
from serving.observed import Rollouts
from serving.page import assets
from serving.page.curves import Curves
from serving.page.state import add_worker, state
from serving.processes.peers import Peers


def add(app: FastAPI, gateway: Gateway, curves: Curves, peers: Peers | None = None) -> None:
    """Serve the page over `gateway`; none of it is part of the documented API."""
    rollouts = Rollouts(gateway)

    async def page_state(request: Request) -> Response:
        gateway.admission.callers.authorize(credential_in(request.headers), "classify")
        gap = None
        try:
            found = await asyncio.to_thread(rollouts)
        except (SluiceError, OSError) as error:  # models and refusals must not be lost with these
            found, gap = [], str(getattr(error, "strerror", None) or error)
        shown = state(gateway, found, curves, gap)
        if peers is not None:
            for other in (await peers.ask("page")).values():
                add_worker(shown, other)
        body = orjson.dumps(shown)
        return Response(body, headers={"cache-control": "no-store"}, media_type="application/json")

    app.add_route("/", assets.serve, include_in_schema=False)
    for name in assets.ASSETS:
        app.add_route(f"/page/{name}", assets.serve, include_in_schema=False)
    app.add_route("/page/state", page_state, include_in_schema=False)

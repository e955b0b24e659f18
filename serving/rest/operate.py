"""`/healthz`, `/readyz`, `/v1/models`, `/v1/stacks` and `/metrics`: for whoever, or what, runs a gateway."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, PlainTextResponse, Response

from serving.access.callers import credential_in
from serving.gateway import Gateway
from serving.processes.peers import Peers
from serving.rest.context import headers_of
from serving.telemetry import stacks
from serving.telemetry.scrape import collected, exposition

_TEXT = {"schema": {"type": "string"}}


class VersionState(BaseModel):
    """One version: its state as TensorFlow Serving names it, and why it failed if it did."""

    version: int
    state: str
    available_on: int
    error: str | None


class ModelState(BaseModel):
    """One model with its versions."""

    name: str
    default: bool
    versions: list[VersionState]


class Models(BaseModel):
    """The models of this gateway."""

    models: list[ModelState]


class Health(BaseModel):
    """Whether the process lives."""

    status: str


class Readiness(BaseModel):
    """Whether requests should be sent here; `missing` names the models that cannot be answered for."""

    ready: bool
    missing: list[str]


def add(routes: APIRouter, gateway: Gateway, peers: Peers | None) -> None:
    """Add the routes over `gateway`, and those of its `peers`, the other workers on its ports."""
    _add_health(routes, gateway)
    _add_models(routes, gateway)
    _add_insight(routes, gateway, peers)


def _add_health(routes: APIRouter, gateway: Gateway) -> None:
    @routes.get("/healthz", tags=["operate"], summary="Does the process live?")
    async def healthz() -> Health:
        return Health(status="ok")

    @routes.get(
        "/readyz",
        tags=["operate"],
        summary="Should requests be sent here?",
        response_model=Readiness,
        responses={503: {"description": "Not now", "model": Readiness}},
    )
    async def readyz() -> Response:
        ready = gateway.catalog.can_serve() and not gateway.draining
        found = {"ready": ready, "missing": gateway.catalog.missing()}
        return JSONResponse(found, 200 if ready else 503)


def _add_models(routes: APIRouter, gateway: Gateway) -> None:
    @routes.get("/v1/models", tags=["models"], summary="Which models and versions are there?")
    async def models(request: Request) -> Models:
        gateway.admission.callers.authorize(credential_in(request.headers), "classify")
        return Models.model_validate({"models": gateway.catalog.report()}, from_attributes=True)


def _add_insight(routes: APIRouter, gateway: Gateway, peers: Peers | None) -> None:
    @routes.get(
        "/v1/stacks",
        tags=["operate"],
        summary="What is every task and thread doing at the moment?",
        response_class=PlainTextResponse,
    )
    async def tasks_and_threads(request: Request) -> PlainTextResponse:
        gateway.admission.callers.authorize(credential_in(request.headers), "admin")
        found = {} if peers is None else {peers.name: stacks.dump(), **await peers.ask("stacks")}
        told = "\n\n".join(f"Worker {name}: {dump}" for name, dump in sorted(found.items()))
        return PlainTextResponse(told or stacks.dump())

    @routes.get(
        "/metrics",
        tags=["operate"],
        summary="Metrics for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": _TEXT, "application/openmetrics-text": _TEXT}}},
    )
    async def metrics(request: Request) -> Response:
        registry = gateway.metrics.registry
        source = await collected(registry) if peers is None else await peers.metrics(registry)
        accept = headers_of(request.scope).get("accept", "")
        page, content_type = await asyncio.to_thread(exposition, source, accept)
        return Response(page, media_type=content_type)

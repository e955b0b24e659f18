"""The HTTP API: its routes, and the layer around them."""

from __future__ import annotations

import functools
from importlib.metadata import version

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Match
from starlette.types import ASGIApp

from serving import faults
from serving.errors import InvalidInput, SluiceError
from serving.gateway import Gateway
from serving.observed import exposition
from serving.page import routes
from serving.page.curves import Curves
from serving.processes.peers import Peers
from serving.rest import openapi, rollouts
from serving.rest.boundary import Boundary
from serving.rest.context import authorized, headers_of
from serving.rest.cors import with_cors
from serving.rest.doors import Doors
from serving.rest.errors import method_not_allowed, nothing_at, problem
from serving.telemetry import stacks

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


def build(gateway: Gateway, curves: Curves, peers: Peers | None = None) -> ASGIApp:
    """The whole HTTP API over `gateway`, as an ASGI app.

    Args:
        gateway: what answers.
        curves: the rollouts' evidence so far.
        peers: the other workers on its ports, for whom metrics and page speak, too.
    """
    app = FastAPI(
        title="Sluice",
        version=version("sluice"),
        description="Classify images with models behind TensorFlow Serving.",
        docs_url=None,  # their pages load scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,  # to `http://`, whatever a proxy in front speaks
    )
    _add_error_handlers(app)
    _add_routes(app, gateway, peers)
    rollouts.add(app.router, gateway)
    routes.add(app, gateway, curves, peers)
    app.openapi = functools.cache(lambda: openapi.document(app))  # type: ignore[method-assign]  # FastAPI's documented way
    whole = Boundary(Doors(gateway, app), lambda: gateway.draining, gateway.settings.recorded_share)
    return with_cors(whole, gateway.settings.cors_origins)


def _add_routes(app: FastAPI, gateway: Gateway, peers: Peers | None) -> None:
    @app.get("/healthz", tags=["operate"], summary="Does the process live?")
    async def healthz() -> Health:
        return Health(status="ok")

    @app.get(
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

    @app.get("/v1/models", tags=["models"], summary="Which models and versions are there?")
    async def models(request: Request) -> Models:
        authorized(gateway.admission.callers, request.headers, "classify")
        return Models.model_validate({"models": gateway.catalog.report()}, from_attributes=True)

    @app.get(
        "/v1/stacks",
        tags=["operate"],
        summary="What is every task and thread doing at the moment?",
        response_class=PlainTextResponse,
    )
    async def tasks_and_threads(request: Request) -> PlainTextResponse:
        authorized(gateway.admission.callers, request.headers, "admin")
        found = {} if peers is None else {peers.name: stacks.dump(), **await peers.ask("stacks")}
        told = "\n\n".join(f"Worker {name}: {dump}" for name, dump in sorted(found.items()))
        return PlainTextResponse(told or stacks.dump())

    @app.get(
        "/metrics",
        tags=["operate"],
        summary="Metrics for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": _TEXT, "application/openmetrics-text": _TEXT}}},
    )
    async def metrics(request: Request) -> Response:
        source = gateway.metrics.registry if peers is None else await peers.metrics(gateway.metrics.registry)
        page, content_type = exposition(source, headers_of(request.scope).get("accept", ""))
        return Response(page, media_type=content_type)


def _add_error_handlers(app: FastAPI) -> None:
    """Make FastAPI's own errors problem documents, too."""

    @app.exception_handler(SluiceError)
    async def sluice_error(request: Request, error: SluiceError) -> Response:
        return _problem(request, error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        path = request.url.path
        if error.status_code == 405:
            allowed = _methods_of(app, request)
            id_ = request.scope["state"]["request_id"]
            return method_not_allowed(problem, path, request.method, allowed, id_)
        if error.status_code == 400:  # FastAPI's word for all that keeps it from reading a body
            cause = error.__cause__
            if not isinstance(cause, SluiceError):
                cause = InvalidInput(f"the body is not JSON: {cause}")
            return _problem(request, cause)
        return _problem(request, nothing_at(path))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        found = error.errors()
        if found[0]["type"] == "json_invalid":  # its place is a character's, not a field's
            text = f"the body is {faults.message(found[0])} at character {found[0]['loc'][-1]}"
        else:
            closest = faults.of_closest(found)
            text = "; ".join(f"{faults.dotted(place)}: {faults.message(each)}" for place, each in closest)
        return _problem(request, InvalidInput(text))


def _methods_of(app: FastAPI, request: Request) -> list[str]:
    """Every method that a path takes: each has a route of its own, and Starlette names the first one's."""
    found = [route for route in app.routes if route.matches(request.scope)[0] is not Match.NONE]
    same = [route for route in found if getattr(route, "path", "") == getattr(found[0], "path", "")]
    return sorted({method for route in same for method in getattr(route, "methods", None) or ()})


def _problem(request: Request, error: SluiceError) -> Response:
    return problem(error, request.scope["state"]["request_id"])

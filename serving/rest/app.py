"""The HTTP API as a whole: which part serves which paths, and the layer around it all."""

from __future__ import annotations

import functools
from importlib.metadata import version

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp

from serving import faults
from serving.errors import InvalidInput, SluiceError, UnsupportedMedia
from serving.gateway import Gateway
from serving.page import routes
from serving.page.curves import Curves
from serving.processes.peers import Peers
from serving.rest import openapi, operate, rollouts
from serving.rest.boundary import Boundary
from serving.rest.cors import with_cors
from serving.rest.doors import Doors
from serving.rest.errors import method_not_allowed, nothing_at, problem
from serving.rest.uploads import JSON, content_type_of


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
    operate.add(app.router, gateway, peers)
    rollouts.add(app.router, gateway)
    routes.add(app, gateway, curves, peers)
    app.openapi = functools.cache(lambda: openapi.document(app))  # type: ignore[method-assign]  # FastAPI's documented way
    whole = Boundary(Doors(gateway, app), lambda: gateway.draining, gateway.settings.recorded_share)
    return with_cors(whole, gateway.settings.cors_origins)


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
        if error.status_code == 400:  # FastAPI's status for whatever keeps it from reading a body
            cause = error.__cause__
            if not isinstance(cause, SluiceError):
                cause = InvalidInput(f"the body is not JSON: {cause}")
            return _problem(request, cause)
        return _problem(request, nothing_at(path))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        found = error.errors()
        said = content_type_of(request.headers)
        if not said.startswith("application/") or not said.endswith(("/json", "+json")):
            # FastAPI has not parsed it as JSON, and would complain about bytes.
            text = f'the content type is "{said[:100]}"; supported is {JSON}'
            return _problem(request, UnsupportedMedia(text, stage="admission"))
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

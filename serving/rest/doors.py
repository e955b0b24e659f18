"""Which door a request takes: the image API, TensorFlow Serving's REST API, the Open Inference Protocol.

The paths of models are matched as they came, percent-encoding and all: a decoded `%2F` or `..` in a name must
not become part of the path. All other paths are left to FastAPI.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.errors import InvalidInput, SluiceError
from serving.gateway import Gateway
from serving.prediction import ModelRef
from serving.rest.body import small
from serving.rest.classify import ClassifyEndpoint
from serving.rest.context import headers_of, model_ref
from serving.rest.errors import method_not_allowed, nothing_at, plain_error, problem
from serving.rest.openinference import OpenInferenceRest
from serving.rest.tfserving import TensorFlowServingRest
from serving.rest.uploads import JSON, UNSAID, content_type_of

_MODEL = r"/v1/models/(?P<model>[^/:]+)(?:/versions/(?P<version>[^/:]+)|/labels/(?P<label>[^/:]+))?"
_INFER = re.compile(_MODEL + r":(?P<verb>classify|regress|predict)", re.IGNORECASE)
_INFO = re.compile(_MODEL + r"(?P<metadata>/metadata)?/?", re.IGNORECASE)
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_SLASH = re.compile("%2f", re.IGNORECASE)

# Clients ask for the same few paths again and again. Each takes some 2 kB, even one of a model that does not
# exist. Longer paths belong to no model, and would only take memory.
_MOST_KEPT = 128
_LONGEST_KEPT = 256


@dataclass(frozen=True, slots=True)
class Door:
    """What serves a path, by method; and how its errors look."""

    methods: Mapping[str, ASGIApp]
    plain: bool = False


class Doors:
    """ASGI middleware in front of the app: takes the paths of models, and leaves the rest.

    Args:
        gateway: what answers.
        app: what has the other paths.
    """

    def __init__(self, gateway: Gateway, app: ASGIApp) -> None:
        self._app = app
        self._gateway = gateway
        self._tensorflow = TensorFlowServingRest(gateway)
        self._classify = ClassifyEndpoint(gateway, self._tensorflow)
        self._open_inference = OpenInferenceRest(gateway)
        self._kept_door = functools.lru_cache(_MOST_KEPT)(self._door)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; SluiceErrors are for the boundary."""
        path = scope["raw_path"].decode("ascii", "replace")
        door = self._kept_door(path) if len(path) <= _LONGEST_KEPT else self._door(path)
        if door is None:
            await self._app(_for_fastapi(scope), small(scope, receive, self._gateway.settings), send)
            return
        scope["state"]["error_form"] = plain_error if door.plain else problem
        method = "GET" if scope["method"] == "HEAD" and "GET" in door.methods else scope["method"]
        serve = door.methods.get(method)
        if serve is None:
            await _method_not_allowed(scope, door)(scope, receive, send)
            return
        try:
            await serve(scope, receive, send)
        except SluiceError as error:
            if "context" not in scope["state"]:  # otherwise the gateway has counted it
                self._gateway.journal.refused_early("http", scope["state"]["request_id"], error)
            raise

    def _door(self, path: str) -> Door | None:
        if path == "/v2" or path.startswith("/v2/"):
            methods = self._open_inference.methods_of(path)
            return Door(methods or dict.fromkeys(_METHODS, _nothing), plain=True)
        if path == "/v1/classify":
            return Door({"POST": self._images(ModelRef)})
        if found := _INFER.fullmatch(path):
            return self._infer(found)
        if found := _INFO.fullmatch(path):
            return self._info(found)
        if path.lower().startswith("/v1/models/"):
            return Door(dict.fromkeys(_METHODS, _malformed), plain=True)
        if path.startswith("/v1/rollouts/") and _SLASH.search(path):  # FastAPI would take it for a separator
            return Door(dict.fromkeys(_METHODS, _no_rollout))
        return None

    def _infer(self, found: re.Match[str]) -> Door:
        verb, ref = found["verb"].lower(), _ref_of(found)
        if verb == "classify":
            return Door({"POST": self._images(ref)})

        async def tensors(scope: Scope, receive: Receive, send: Send) -> None:
            response = await self._tensorflow.infer(scope, receive, ref(), verb)
            await response(scope, receive, send)

        return Door({"POST": tensors}, plain=True)

    def _info(self, found: re.Match[str]) -> Door:
        about = self._tensorflow.metadata if found["metadata"] else self._tensorflow.status
        ref = _ref_of(found)

        async def get(scope: Scope, receive: Receive, send: Send) -> None:
            response = await about(scope, ref())
            await response(scope, receive, send)

        return Door({"GET": get}, plain=True)

    def _images(self, ref: Callable[[], ModelRef]) -> ASGIApp:
        async def images(scope: Scope, receive: Receive, send: Send) -> None:
            await self._classify(scope, receive, send, ref())

        return images


def _for_fastapi(scope: Scope) -> Scope:
    """A request as FastAPI's routes expect it.

    They do not know HEAD (uvicorn sends only the headers of its answer), and parse a body as JSON only if
    its content type says so.
    """
    if scope["method"] == "HEAD":
        return {**scope, "method": "GET"}
    if scope["method"] == "POST" and content_type_of(headers_of(scope)) in UNSAID:
        others = [each for each in scope["headers"] if each[0] != b"content-type"]
        return {**scope, "headers": [*others, (b"content-type", JSON.encode())]}
    return scope


def _ref_of(found: re.Match[str]) -> Callable[[], ModelRef]:
    """A function that gives the model that a path names; it raises InvalidInput if the version is not one."""
    return functools.cache(lambda: model_ref(found["model"], found["version"], found["label"]))


async def _malformed(scope: Scope, _receive: Receive, _send: Send) -> None:
    path = scope["raw_path"].decode("ascii", "replace")
    raise InvalidInput(f"Malformed request: {scope['method']} {path[:1000]}", stage="routing")


async def _no_rollout(scope: Scope, _receive: Receive, _send: Send) -> None:
    path = scope["raw_path"].decode("ascii", "replace")
    raise InvalidInput(f"no model with a / in its name has rollouts: {path[:1000]}", stage="routing")


async def _nothing(scope: Scope, _receive: Receive, _send: Send) -> None:
    raise nothing_at(scope["path"])


def _method_not_allowed(scope: Scope, door: Door) -> Response:
    form = plain_error if door.plain else problem
    id_ = scope["state"]["request_id"]
    return method_not_allowed(form, "this path", scope["method"], door.methods, id_)

"""The Open Inference Protocol, version 2, over HTTP."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import version
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serving import open_inference
from serving.errors import InvalidInput
from serving.gateway import Gateway
from serving.model_version import ModelVersion
from serving.prediction import ModelRef
from serving.rest.body import Body
from serving.rest.context import headers_of, model_ref, request_context
from serving.rest.infer_body import HEADER_LENGTH, json_object, parse, render

_MODEL = re.compile(
    r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?(?:/(?P<what>ready|infer|config))?/?"
)
Answer = Callable[[Scope, Receive, ModelRef], Awaitable[Response]]


class OpenInferenceRest:
    """The protocol over a gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._fixed: dict[str, tuple[str, Answer]] = {
            "/v2": ("GET", self._server),
            "/v2/health/live": ("GET", self._live),
            "/v2/health/ready": ("GET", self._ready),
            "/v2/repository/index": ("POST", self._index),
        }
        self._of_model: dict[str | None, tuple[str, Answer]] = {
            None: ("GET", self._metadata),
            "ready": ("GET", self._model_ready),
            "config": ("GET", self._config),
            "infer": ("POST", self._infer),
        }

    def methods_of(self, path: str) -> Mapping[str, ASGIApp] | None:
        """What serves a path, by method; None if it is none of this protocol's."""
        fixed = self._fixed.get(path.rstrip("/"))
        if fixed is not None:
            return {fixed[0]: _serving(fixed[1], ModelRef)}
        found = _MODEL.fullmatch(path)
        if found is None:
            return None
        method, answer = self._of_model[found["what"]]
        return {method: _serving(answer, lambda: model_ref(found["model"], found["version"]))}

    async def _server(self, _scope: Scope, _receive: Receive, _ref: ModelRef) -> Response:
        return _json(
            {"name": "sluice", "version": version("sluice"), "extensions": list(open_inference.EXTENSIONS)}
        )

    async def _live(self, _scope: Scope, _receive: Receive, _ref: ModelRef) -> Response:
        return _json({"live": True})

    async def _ready(self, _scope: Scope, _receive: Receive, _ref: ModelRef) -> Response:
        ready = not self._gateway.draining and not self._gateway.catalog.missing()
        return _json({"ready": ready}, 200 if ready else 503)

    async def _model_ready(self, scope: Scope, _receive: Receive, ref: ModelRef) -> Response:
        context = request_context(scope, self._gateway.settings)
        with self._gateway.request(context, ref):
            ready = open_inference.is_ready(self._gateway.catalog, ref)
        return _json({"name": ref.name, "ready": ready}, 200 if ready else 503)

    async def _index(self, scope: Scope, receive: Receive, ref: ModelRef) -> Response:
        context = request_context(scope, self._gateway.settings)
        with self._gateway.request(context, ref) as ticket:
            body = await Body(scope, receive, ticket, context, self._gateway.settings).whole()
            asked = json_object(body) if body else {}
            ready_only = asked.get("ready", False)
            if not isinstance(ready_only, bool):
                raise InvalidInput('"ready" is true or false')
            return _json(open_inference.index(self._gateway.catalog, ready_only=ready_only))

    async def _metadata(self, scope: Scope, _receive: Receive, ref: ModelRef) -> Response:
        model = await self._model(scope, ref)
        return _json(open_inference.metadata(model, list(self._gateway.catalog.versions(model.name))))

    async def _config(self, scope: Scope, _receive: Receive, ref: ModelRef) -> Response:
        model = await self._model(scope, ref)
        return _json(open_inference.config(model, self._gateway.settings.max_batch))

    async def _model(self, scope: Scope, ref: ModelRef) -> ModelVersion:
        context = request_context(scope, self._gateway.settings)
        with self._gateway.request(context, ref):
            return await self._gateway.resolve(ref, context)

    async def _infer(self, scope: Scope, receive: Receive, ref: ModelRef) -> Response:
        context = request_context(scope, self._gateway.settings)
        header_length = headers_of(scope).get(HEADER_LENGTH)
        with self._gateway.request(context, ref) as ticket:
            body = await Body(scope, receive, ticket, context, self._gateway.settings).whole()
            asked = await self._gateway.in_thread(parse, body, header_length)
            answering: ModelVersion | None = None

            async def prepare(model: ModelVersion) -> Any:
                nonlocal answering
                answering = model
                return await self._gateway.in_thread(open_inference.predict_request, model, asked.request)

            response = await self._gateway.ask("Predict", ref, prepare, context)
            assert answering is not None
            content, json_length = await self._gateway.in_thread(render, response, asked, answering)
        if json_length is None:
            return Response(content, media_type="application/json")
        headers = {HEADER_LENGTH: str(json_length)}
        return Response(content, headers=headers, media_type="application/octet-stream")


def _serving(answer: Answer, ref: Callable[[], ModelRef]) -> ASGIApp:
    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        response = await answer(scope, receive, ref())
        await response(scope, receive, send)

    return serve


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")

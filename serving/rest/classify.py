"""`POST …:classify`: images in, labels and scores out.

These routes are plain ASGI: on the hot path FastAPI's handling of parameters costs more than a small
model's share of a batch. They are documented in `serving.rest.openapi`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from starlette.datastructures import Headers, QueryParams
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from serving.errors import DeadlineExceeded, InvalidInput
from serving.gateway import Gateway
from serving.prediction import ImageResult, ModelRef, Prediction, RequestContext
from serving.rest.body import Upload, read_images

PATHS = (
    "/v1/classify",
    "/v1/models/{model}:classify",
    "/v1/models/{model}/versions/{version}:classify",
)


class ClassifyEndpoint:
    """The ASGI endpoint behind every path of `PATHS`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; SluiceErrors are for the boundary."""
        context = request_context(scope, self._gateway.settings.request_timeout_s)
        ref = model_ref(scope["path_params"])
        with self._gateway.request(context, ref) as ticket:
            top_k = _read_top_k(QueryParams(scope["query_string"]))
            try:
                async with asyncio.timeout(context.deadline - time.monotonic()):
                    uploads = await read_images(
                        scope,
                        receive,
                        ticket,
                        max_body_bytes=self._gateway.settings.max_body_bytes,
                        max_images=self._gateway.settings.max_images,
                    )
            except TimeoutError:
                raise DeadlineExceeded(
                    "the deadline passed before the body had come", stage="admission"
                ) from None
            images = [upload.data for upload in uploads]
            prediction = await self._gateway.classify(ref, images, top_k, context)
            response = _answer(prediction, uploads)
        await response(scope, receive, send)


def routes(gateway: Gateway) -> list[Route]:
    """The routes of `PATHS`."""
    endpoint = ClassifyEndpoint(gateway)
    return [Route(path, endpoint, methods=["POST"]) for path in PATHS]


def request_context(scope: Scope, default_timeout_s: float) -> RequestContext:
    """Who asks, and until when: from `X-Request-Timeout` (seconds), at most the default."""
    headers = Headers(scope=scope)
    timeout_s = default_timeout_s
    asked = headers.get("x-request-timeout")
    if asked is not None:
        timeout_s = min(_positive_seconds(asked), default_timeout_s)
    request_id = scope["state"]["request_id"]
    return RequestContext(
        request_id=request_id,
        protocol="http",
        deadline=time.monotonic() + timeout_s,
        routing_key=headers.get("x-routing-key", request_id),
    )


def _positive_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (seconds > 0 and math.isfinite(seconds)):
        raise InvalidInput(f'X-Request-Timeout is "{text}"; it is a number of seconds above 0, such as 1.5')
    return seconds


def model_ref(path_params: Mapping[str, str]) -> ModelRef:
    """The model and version that a path names; raises InvalidInput for a version that is no number."""
    version = path_params.get("version")
    if version is None:
        return ModelRef(path_params.get("model"))
    if not (version.isascii() and version.isdigit() and len(version) < 19):
        raise InvalidInput(f'"{version}" is no version; versions are numbers, such as 1', stage="routing")
    return ModelRef(path_params["model"], int(version))


def _read_top_k(query: QueryParams) -> int | None:
    text = query.get("top_k")
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise InvalidInput(f'top_k is "{text}"; it is a whole number above 0', stage="admission") from None


def _answer(prediction: Prediction, uploads: Sequence[Upload]) -> Response:
    """The answer as JSON. A request of which every image failed fails as its first image did."""
    first = prediction.results[0].error
    if first is not None and all(result.error for result in prediction.results):
        raise first
    body = {
        "model": prediction.model,
        "version": prediction.version,
        "results": [
            _result(result, upload) for result, upload in zip(prediction.results, uploads, strict=True)
        ],
    }
    return Response(orjson.dumps(body), media_type="application/json")


def _result(result: ImageResult, upload: Upload) -> dict[str, Any]:
    shown: dict[str, Any] = {} if upload.file is None else {"file": upload.file}
    if result.error is not None:
        return shown | {"error": {"type": result.error.kind, "detail": result.error.message}}
    classes = [{"label": each.label, "index": each.index, "score": each.score} for each in result.classes]
    return shown | {"classes": classes}

"""The image API, `POST …:classify`: images in, labels and scores out.

Plain ASGI: on the hot path FastAPI's handling of parameters costs more than a small model's share of a
batch. The operations are documented in `serving.rest.openapi`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from serving.admission import Ticket
from serving.errors import InvalidInput, SluiceError, UnsupportedMedia, without_frames
from serving.file_kinds import begins_as_image, kind_of
from serving.gateway import Gateway
from serving.parts import Part
from serving.prediction import ImageResult, ModelRef, Prediction, RequestContext
from serving.rest import uploads
from serving.rest.body import Body
from serving.rest.context import headers_of, request_context, server_timing
from serving.rest.errors import plain_error
from serving.rest.tfserving import TensorFlowServingRest
from serving.rest.top_k import top_k_of_query
from serving.rest.uploads import Upload, Uploads

NDJSON = "application/x-ndjson"
# Keys of TensorFlow Serving's own classify request.
_TENSORFLOWS = frozenset(("signature_name", "context", "examples"))


class ClassifyEndpoint:
    """The ASGI endpoint of every `:classify` path, and of `/v1/classify`."""

    def __init__(self, gateway: Gateway, tensorflow: TensorFlowServingRest) -> None:
        self._gateway = gateway
        self._tensorflow = tensorflow

    async def __call__(self, scope: Scope, receive: Receive, send: Send, ref: ModelRef) -> None:
        """Serve one request; SluiceErrors are for the boundary."""
        context = request_context(scope, self._gateway.settings)
        streams = NDJSON in headers_of(scope).get("accept", "").lower()
        with self._gateway.request(context, ref) as ticket:
            found = await self._read(scope, receive, ticket, context)
            if isinstance(found, bytes):
                # TensorFlow Serving's own classify has this path, too; its body has no images.
                scope["state"]["error_form"] = plain_error
                response = await self._tensorflow.infer_admitted(ref, "classify", found, context)
            elif streams:
                await self._stream(scope, receive, send, ref, found, context)
                return
            else:
                response = await self._answer(ref, found, context)
        await response(scope, receive, send)

    async def _read(
        self, scope: Scope, receive: Receive, ticket: Ticket, context: RequestContext
    ) -> Uploads | bytes:
        """The images and how many classes are wanted, or a JSON body without images."""
        settings = self._gateway.settings
        content_type = uploads.content_type_of(headers_of(scope))
        body = Body(scope, receive, ticket, context, settings)
        if content_type == uploads.JSON or content_type in uploads.UNSAID:
            return await self._read_any(scope["query_string"], content_type, await body.whole())
        if content_type != uploads.MULTIPART and content_type not in uploads.BINARY:
            raise _unsupported(content_type)
        top_k = top_k_of_query(scope["query_string"])
        if content_type == uploads.MULTIPART:
            return await uploads.form_uploads(Headers(scope=scope), body.chunks(), settings, top_k)
        return uploads.one_upload(await body.whole(), top_k)

    async def _read_any(self, query: bytes, content_type: str, data: bytes) -> Uploads | bytes:
        """The content of a JSON body, or of one whose content type does not say whether it is an image."""
        if content_type != uploads.JSON:
            # what decoding refuses by its name is no matter of the content type
            if begins_as_image(data) or kind_of(data) or not data:
                return uploads.one_upload(data, top_k_of_query(query))
            if not data.lstrip().startswith(b"{"):
                raise _unsupported(content_type)
        value = await self._gateway.in_thread(uploads.parse_json, data)
        if isinstance(value, dict) and "images" not in value:
            if value and not value.keys() & _TENSORFLOWS:
                raise InvalidInput(
                    f'the JSON has no "images", as in {uploads.JSON_FORM}, nor "examples", as in TensorFlow '
                    "Serving's API",
                    stage="decode",
                )
            return data  # its query is none of the image API's business
        top_k = top_k_of_query(query)
        return await self._gateway.in_thread(uploads.json_uploads, value, top_k, self._gateway.check_number)

    async def _answer(self, ref: ModelRef, found: Uploads, context: RequestContext) -> Response:
        """The answer as JSON. If every image failed, the request fails as its first image did."""
        places = _places_of_whole(found.images)
        whole = [found.images[index].data for index in places]
        prediction = await self._gateway.classify(ref, whole, found.top_k, context)
        results = list(_merged(prediction.results, found.images))
        first = results[0].error
        if first is not None and all(result.error for result in results):
            raise first
        if prediction.is_large:
            body = await self._gateway.in_thread(_body, prediction, results, found.images)
        else:
            body = _body(prediction, results, found.images)
        return Response(
            body, headers={"server-timing": server_timing(context)}, media_type="application/json"
        )

    async def _stream(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        ref: ModelRef,
        found: Uploads,
        context: RequestContext,
    ) -> None:
        """A line of JSON for each image, as answers come; a failure later on becomes a last line."""
        places = _places_of_whole(found.images)
        parts = self._gateway.classify_in_parts(
            ref, [found.images[index].data for index in places], found.top_k, context
        )
        async with aclosing(parts):
            first = await anext(parts)
            lines = self._lines(first, parts, places, found.images)
            if scope["http_version"] == "1.0":  # which has no chunked encoding (RFC 9112, 6.1)
                whole = Response(b"".join([line async for line in lines]), media_type=NDJSON)
                await whole(scope, receive, send)
                return
            # Not called as an app: it would watch for the client to leave, which `serving.rest.leaving` does
            # already, and in that case would leave all images to the garbage collector.
            await StreamingResponse(lines, media_type=NDJSON).stream_response(send)

    async def _lines(
        self,
        first: Part,
        rest: AsyncIterator[Part],
        places: Sequence[int],
        images: Sequence[Upload],
    ) -> AsyncIterator[bytes]:
        """The lines of a stream. `places` are the indices, among all images, of those that were sent on."""
        for index, upload in enumerate(images):
            if upload.error is not None:
                yield _line({"index": index, **_result(ImageResult(error=upload.error), upload)})
        yield await self._lines_of(first, places, images)
        try:
            async for part in rest:
                yield await self._lines_of(part, places, images)
        except SluiceError as error:
            without_frames(error)
            yield _line({"error": {"type": error.kind, "detail": error.message}})

    async def _lines_of(self, part: Part, places: Sequence[int], images: Sequence[Upload]) -> bytes:
        if part[1].is_large:
            return await self._gateway.in_thread(_part_lines, part, places, images)
        return _part_lines(part, places, images)


def _places_of_whole(images: Sequence[Upload]) -> list[int]:
    """The indices of the images that came whole; raises the first one's error if none did."""
    places = [index for index, each in enumerate(images) if each.error is None]
    first_error = images[0].error if images else None
    if first_error is not None and not places:
        raise first_error
    return places


def _part_lines(part: Part, places: Sequence[int], images: Sequence[Upload]) -> bytes:
    start, prediction = part
    return b"".join(
        _line(
            {
                "index": place,
                "model": prediction.model,
                "version": prediction.version,
                **_result(result, images[place]),
            }
        )
        for place, result in zip(places[start:], prediction.results, strict=False)
    )


def _line(value: dict[str, Any]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)


def _unsupported(content_type: str) -> UnsupportedMedia:
    said = f'"{content_type[:100]}"' if content_type else "missing"
    return UnsupportedMedia(
        f"the content type is {said}; supported are {', '.join(uploads.TAKEN)}", stage="admission"
    )


def _merged(results: Iterable[ImageResult], images: Iterable[Upload]) -> Iterator[ImageResult]:
    """A result for each upload: its own error, or the next of `results`."""
    of_whole = iter(results)
    for upload in images:
        yield next(of_whole) if upload.error is None else ImageResult(error=upload.error)


def _body(prediction: Prediction, results: Iterable[ImageResult], images: Iterable[Upload]) -> bytes:
    """The answer as JSON, serialized image by image, so that others get the interpreter lock in between."""
    written = (
        orjson.Fragment(orjson.dumps(_result(result, upload)))
        for result, upload in zip(results, images, strict=True)
    )
    return orjson.dumps({"model": prediction.model, "version": prediction.version, "results": list(written)})


def _result(result: ImageResult, upload: Upload) -> dict[str, Any]:
    shown: dict[str, Any] = {} if upload.file is None else {"file": upload.file}
    if result.error is not None:
        return shown | {"error": {"type": result.error.kind, "detail": result.error.message}}
    classes = [{"label": each.label, "index": each.index, "score": each.score} for each in result.classes]
    if result.prediction_id:
        shown["prediction_id"] = result.prediction_id
    return shown | {"classes": classes}

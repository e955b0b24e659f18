"""Kinds of error as HTTP: each kind has one status, and every error is a problem document (RFC 9457)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

import orjson
from starlette.responses import Response

from serving import errors

STATUS_OF_KIND: dict[type[errors.SluiceError], int] = {
    errors.InvalidInput: 400,
    errors.BadImage: 400,
    errors.UnsupportedMedia: 415,
    errors.TooLarge: 413,
    errors.Unauthenticated: 401,
    errors.PermissionDenied: 403,
    errors.NotFound: 404,
    errors.FailedPrecondition: 400,
    errors.Conflict: 409,
    errors.Overloaded: 503,
    errors.RateLimited: 429,
    errors.DeadlineExceeded: 504,
    errors.Cancelled: 499,
    errors.Unavailable: 503,
    errors.Unimplemented: 501,
    errors.Internal: 500,
}

TITLE_OF_KIND: dict[type[errors.SluiceError], str] = {
    errors.InvalidInput: "The request is not valid",
    errors.BadImage: "The image cannot be read",
    errors.UnsupportedMedia: "The content type is not supported",
    errors.TooLarge: "The request is too large",
    errors.Unauthenticated: "Credentials are missing or wrong",
    errors.PermissionDenied: "The credentials do not allow this",
    errors.NotFound: "Not found",
    errors.FailedPrecondition: "It cannot do this",
    errors.Conflict: "Somebody else changed it first",
    errors.Overloaded: "The gateway is full",
    errors.RateLimited: "Too many requests from this caller",
    errors.DeadlineExceeded: "It could not be done in time",
    errors.Cancelled: "The caller went away",
    errors.Unavailable: "No replica can answer now",
    errors.Unimplemented: "This is not offered",
    errors.Internal: "A fault of the server",
}

PROBLEM_JSON = "application/problem+json"


MAX_DETAIL_CHARS = 4096


class Form(Protocol):
    """How errors look at a path."""

    def __call__(self, error: errors.SluiceError, request_id: str, status: int | None = None) -> Response:
        """The answer; `status` overrides the kind's own."""


def problem(error: errors.SluiceError, request_id: str, status: int | None = None) -> Response:
    """The problem document of an error.

    `type` is stable, for programs; `detail` says what failed and what would be right, for people.
    """
    status = status or STATUS_OF_KIND[type(error)]
    body = problem_body(error, status=status, request_id=request_id)
    return Response(body, status, _headers_for(error), PROBLEM_JSON)


def problem_body(error: errors.SluiceError, *, status: int, request_id: str) -> bytes:
    """The bytes of a problem document."""
    body = {
        "type": f"urn:sluice:problem:{error.kind}",
        "title": TITLE_OF_KIND[type(error)],
        "status": status,
        "detail": errors.shortened(error.message, MAX_DETAIL_CHARS),
        "retryable": error.retryable,
        "request_id": request_id,
    }
    if error.stage is not None:
        body["stage"] = error.stage
    return orjson.dumps(body)


def plain_error(
    error: errors.SluiceError,
    request_id: str,  # noqa: ARG001 - see `Form`
    status: int | None = None,
) -> Response:
    """An error as TensorFlow Serving and the Open Inference Protocol have it: `{"error": "…"}`."""
    body = orjson.dumps({"error": errors.shortened(error.message, MAX_DETAIL_CHARS)})
    return Response(body, status or STATUS_OF_KIND[type(error)], _headers_for(error), "application/json")


def nothing_at(path: str) -> errors.NotFound:
    """The error for a path at which nothing is served."""
    return errors.NotFound(f"there is no {path} here; /openapi.json lists what there is", stage="routing")


def method_not_allowed(
    form: Form, what: str, method: str, allowed: Iterable[str], request_id: str
) -> Response:
    """The error for a path that takes other methods: only HTTP has this failure, and a status for it.

    Args:
        form: how errors look at this path.
        what: the path, as it is called in the text.
        method: the one that was tried.
        allowed: those that it takes.
        request_id: the request's id.
    """
    names = ", ".join(allowed)
    error = errors.InvalidInput(f"{what} does not take {method}; it takes {names}", stage="routing")
    answer = form(error, request_id, 405)
    answer.headers["allow"] = names
    return answer


def _headers_for(error: errors.SluiceError) -> dict[str, str]:
    """What HTTP says besides the body: when to retry, and how to authenticate."""
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, errors.Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    return headers

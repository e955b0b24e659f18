"""Kinds of error as HTTP: each kind has one status, and every error is a problem document (RFC 9457)."""

from __future__ import annotations

import math

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
    errors.UnsupportedMedia: "The content type is not taken",
    errors.TooLarge: "The request is too large",
    errors.Unauthenticated: "Credentials are missing or wrong",
    errors.PermissionDenied: "The credentials do not allow this",
    errors.NotFound: "There is no such thing",
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


def problem(error: errors.SluiceError, request_id: str) -> Response:
    """The problem document of an error.

    `type` is stable, for programs; `detail` says what failed and what would be right, for people.
    """
    kind = type(error)
    status = STATUS_OF_KIND[kind]
    body = {
        "type": f"urn:sluice:problem:{error.kind}",
        "title": TITLE_OF_KIND[kind],
        "status": status,
        "detail": error.message,
        "retryable": error.retryable,
        "request_id": request_id,
    }
    if error.stage is not None:
        body["stage"] = error.stage
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    return Response(orjson.dumps(body), status, headers, PROBLEM_JSON)

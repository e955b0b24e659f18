"""What a request's headers and path say: who asks, until when, for which model."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from starlette.types import Scope

from serving.access.callers import credential_in
from serving.errors import InvalidInput
from serving.prediction import ModelRef, RequestContext, version_number
from serving.rest.leaving import cancel_if_left
from serving.settings import Settings

# Those of the headers read here whose values are lists, and may come in several lines.
_LISTS = frozenset(("accept", "connection", "content-encoding", "expect", "if-none-match"))


def headers_of(scope: Scope) -> Mapping[str, str]:
    """A request's headers by their names in lower case.

    If one comes more than once, lists are joined (RFC 9110, 5.3), and of others the first is taken. They are
    decoded once: Starlette's `Headers` goes through all of them at every look.
    """
    state: dict[str, Any] = scope["state"]
    found: dict[str, str] | None = state.get("headers")
    if found is None:
        found = state["headers"] = {}
        for raw_name, raw_value in scope["headers"]:
            name, value = str(raw_name, "latin-1"), str(raw_value, "latin-1")
            if name not in found:
                found[name] = value
            elif name in _LISTS:
                found[name] += f", {value}"
    return found


def request_context(scope: Scope, settings: Settings) -> RequestContext:
    """Who asks, and until when: from `X-Request-Timeout` (seconds), at most the default.

    It is also kept in the scope: from then on the gateway counts the request, and it is cancelled if its
    client leaves.
    """
    cancel_if_left(scope)
    headers = headers_of(scope)
    timeout_s = settings.request_timeout_s
    asked = headers.get("x-request-timeout")
    if asked is not None:
        timeout_s = min(_positive_seconds(asked), timeout_s)
    request_id = scope["state"]["request_id"]
    context = scope["state"]["context"] = RequestContext(
        request_id=request_id,
        protocol="http",
        deadline=time.monotonic() + timeout_s,
        routing_key=headers.get(settings.routing_header.lower(), request_id),
        credential=credential_in(headers),
        trace=scope["state"]["trace"],
    )
    return context


def server_timing(context: RequestContext) -> str:
    """Where the time went so far, in milliseconds, for a `Server-Timing` header (W3C Server Timing)."""
    spent = {**context.stages_s, "total": time.monotonic() - context.started}
    return ", ".join(f"{name};dur={duration_s * 1000:.3f}" for name, duration_s in spent.items())


def _positive_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (seconds > 0 and math.isfinite(seconds)):
        raise InvalidInput(f'X-Request-Timeout is "{text}"; it is a number of seconds above 0, such as 1.5')
    return seconds


def model_ref(model: str | None, version: str | None = None, label: str | None = None) -> ModelRef:
    """The model and version of a path's segments, which are percent-encoded.

    Raises:
        InvalidInput: the version is not a number.
    """
    name = None if model is None else unquote(model)
    if version is not None:
        return ModelRef(name, version_number(unquote(version)))
    return ModelRef(name, label="" if label is None else unquote(label))

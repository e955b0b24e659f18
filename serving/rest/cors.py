"""Which pages from other origins may read the gateway's answers (CORS, in the Fetch standard).

A page cannot act in a browser user's name: there are no cookies, and whatever changes anything needs a key.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from serving.rest.infer_body import HEADER_LENGTH

# The headers of an answer that a page may read, besides the few that browsers always show.
_SHOWN = ("retry-after", "server-timing", "x-request-id", "traceparent", HEADER_LENGTH)


def with_cors(app: ASGIApp, origins: Collection[str]) -> ASGIApp:
    """The app, with answers that pages of these origins may read; `*`: of any. Without origins, as it is."""
    if not origins:
        return app
    return CORSMiddleware(
        app, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=_SHOWN
    )

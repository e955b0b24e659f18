"""How the tests of the HTTP API ask, and how they read a refusal."""

from __future__ import annotations

import httpx

from tests.support.pictures import encoded, gradient

PNG = {"content-type": "image/png"}
PATH = "/v1/models/digits:classify"


def grey_png(value: int) -> bytes:
    """An 8×8 image of one grey; the scripted classes are the grey times ten over 256."""
    return encoded(gradient(8, 8, "L").point(lambda _: value), "PNG")


def refused(answer: httpx.Response, status: int, kind: str) -> str:
    """Check that `answer` is a problem document of this status and kind; return its detail."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["type"] == f"urn:sluice:problem:{kind}"
    assert body["status"] == status
    assert body["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    return str(body["detail"])

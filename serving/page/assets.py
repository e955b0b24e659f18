"""The page's files, read once, with the headers that keep anything else out of the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import cast

from starlette.requests import Request
from starlette.responses import Response

from serving.rest.context import headers_of

_FOLDER = Path(__file__).parent / "static"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing inline, nothing from elsewhere, no framing; pictures that the person chose are blobs.
SECURITY_HEADERS: Mapping[str, str] = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """One file: its bytes, its media type, and the tag that tells its content."""

    content: bytes
    media_type: str
    etag: str


def _read(path: Path) -> Asset:
    content = path.read_bytes()
    return Asset(content, _TYPES[path.suffix], f'"{blake2b(content, digest_size=12).hexdigest()}"')


ASSETS: Mapping[str, Asset] = {path.name: _read(path) for path in sorted(_FOLDER.iterdir())}


def answer(name: str, request: Request) -> Response:
    """The file `name`, or 304 if the browser has it; `name` is one of `ASSETS`."""
    asset = ASSETS[name]
    headers = {**SECURITY_HEADERS, "etag": asset.etag, "cache-control": "no-cache"}
    if _is_among(asset.etag, headers_of(request.scope).get("if-none-match", "")):
        return Response(status_code=304, headers=headers)
    return Response(asset.content, headers=headers, media_type=asset.media_type)


def _is_among(etag: str, tags: str) -> bool:
    """Whether a browser's list of tags has this one, which a compressing proxy may have made weak (`W/`)."""
    given = {tag.strip().removeprefix("W/") for tag in tags.split(",")}
    return etag in given or "*" in given


async def serve(request: Request) -> Response:
    """The asset that the route's path names."""
    path = cast("str", request.scope["path"])
    return answer("index.html" if path == "/" else path.rpartition("/")[2], request)

"""Reading a request's body, within limits, and finding the images in it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from serving.admission import Ticket
from serving.errors import Cancelled, InvalidInput, TooLarge, UnsupportedMedia
from serving.images import CONTENT_TYPES

MULTIPART = "multipart/form-data"
# "Some bytes": what clients send that do not know better; the bytes say what they are.
OCTET_STREAM = "application/octet-stream"
TAKEN = (*CONTENT_TYPES, OCTET_STREAM, MULTIPART)


@dataclass(frozen=True, slots=True)
class Upload:
    """One image of a request: its bytes, and its file name where the form gave one."""

    data: bytes
    file: str | None = None


async def read_images(
    scope: Scope, receive: Receive, ticket: Ticket, *, max_body_bytes: int, max_images: int
) -> list[Upload]:
    """The images of a request, encoded as they came: the whole body, or every file of a multipart form.

    Raises:
        UnsupportedMedia: a content type that is not taken; the text names those that are.
        TooLarge: more than `max_body_bytes`, found from `Content-Length` or while reading.
        InvalidInput: no body, or a malformed form.
        Overloaded: the gateway holds too many bytes.
        Cancelled: the client went away.
    """
    headers = Headers(scope=scope)
    content_type = headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type not in TAKEN:
        said = f'"{content_type}"' if content_type else "missing"
        raise UnsupportedMedia(f"the content type is {said}; taken are {', '.join(TAKEN)}", stage="admission")
    chunks = _read(scope, receive, ticket, headers, max_body_bytes)
    if content_type == MULTIPART:
        return await _read_form(headers, chunks, max_images)
    body = b"".join([chunk async for chunk in chunks])
    if not body:
        raise InvalidInput("the request has no body; send an image file as the body", stage="decode")
    return [Upload(body)]


async def _read(
    scope: Scope, receive: Receive, ticket: Ticket, headers: Headers, max_body_bytes: int
) -> AsyncGenerator[bytes, None]:
    """The body's chunks. Room is taken as they come, so that a length that is only claimed costs nothing."""
    claimed = headers.get("content-length", "")
    if claimed.isascii() and claimed.isdigit() and int(claimed) > max_body_bytes:
        raise _too_large(f"{int(claimed):,} bytes", max_body_bytes)
    size_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Cancelled("the client went away before its request was complete", stage="admission")
        chunk = message.get("body", b"")
        size_bytes += len(chunk)
        if size_bytes > max_body_bytes:
            raise _too_large(f"over {max_body_bytes:,} bytes", max_body_bytes)
        ticket.hold(len(chunk))
        if chunk:
            yield chunk
        if not message.get("more_body", False):
            scope["state"]["body_read"] = True
            return


def _too_large(size: str, max_body_bytes: int) -> TooLarge:
    return TooLarge(f"the body has {size}; at most {max_body_bytes:,} are taken", stage="admission")


async def _read_form(headers: Headers, chunks: AsyncGenerator[bytes, None], max_images: int) -> list[Upload]:
    _, options = parse_options_header(headers["content-type"])
    if b"boundary" not in options:
        raise InvalidInput("the content type multipart/form-data has no boundary", stage="decode")
    parser = MultiPartParser(headers, chunks, max_files=max_images, max_fields=max_images)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidInput(f"the multipart form is malformed: {error.message}", stage="decode") from error
    except ClientDisconnect as error:
        raise Cancelled("the client went away before its request was complete") from error
    try:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        uploads = [Upload(await file.read(), file.filename) for file in files]
    finally:
        await form.close()
    if not uploads:
        raise InvalidInput("the multipart form has no file; send each image as a file part", stage="decode")
    return uploads

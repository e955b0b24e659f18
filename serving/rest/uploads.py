"""The images in a request's body: the body itself, the files of a form, or base64 in JSON."""

from __future__ import annotations

import binascii
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from serving import json_document
from serving.errors import BadImage, Cancelled, InvalidInput
from serving.images import CONTENT_TYPES
from serving.rest.top_k import agreed, top_k_of_form
from serving.settings import Settings

MULTIPART = "multipart/form-data"
JSON = "application/json"
# "Some bytes": what clients send that know no better; the bytes themselves say what they are.
OCTET_STREAM = "application/octet-stream"
BINARY = (*CONTENT_TYPES, OCTET_STREAM)
TAKEN = (*BINARY, MULTIPART, JSON)
# No content type at all, or curl's default for any body: then the first bytes tell what it is.
UNSAID = ("", "application/x-www-form-urlencoded")

# The charsets of a form's names and texts. Not whatever Python has a codec for: some raise errors of their
# own ("undefined"), take a minute for a megabyte ("punycode") or give invalid Unicode ("utf-7"), and Python
# caches every name that it has ever been asked for.
CHARSETS = ("utf-8", "utf8", "us-ascii", "iso-8859-1", "windows-1252")

JSON_FORM = '{"images": [{"b64": "…"}], "top_k": 5}'


@dataclass(frozen=True, slots=True)
class Upload:
    """One image of a request: its bytes, its file name if the form gave one, or why it has no bytes."""

    data: bytes
    file: str | None = None
    error: BadImage | None = None


@dataclass(frozen=True, slots=True)
class Uploads:
    """The images of a request, and how many classes it wants if it says so."""

    images: list[Upload]
    top_k: int | None = None


def content_type_of(headers: Mapping[str, str]) -> str:
    """The media type without its parameters, in lower case; empty if there is none."""
    return headers.get("content-type", "").split(";")[0].strip().lower()


def one_upload(body: bytes, top_k: int | None) -> Uploads:
    """A body that is an image; raises InvalidInput if there is none."""
    if not body:
        raise no_body()
    return Uploads([Upload(body)], top_k)


def no_body() -> InvalidInput:
    """The error for a request without a body."""
    return InvalidInput("the request has no body; send an image file as the body", stage="decode")


async def form_uploads(
    headers: Headers, chunks: AsyncGenerator[bytes, None], settings: Settings, of_query: int | None
) -> Uploads:
    """Every file of a multipart form (RFC 7578), and `top_k`: a text field of the form, or else `of_query`.

    Raises:
        InvalidInput: the form is malformed, in an unsupported charset, has no file, another text field, or
            a `top_k` that differs from the query's.
        Cancelled: the client went away.
    """
    _, options = parse_options_header(headers["content-type"])
    if b"boundary" not in options:
        raise InvalidInput("the content type multipart/form-data has no boundary", stage="decode")
    charset = options.get(b"charset", b"utf-8").decode("latin-1")
    if charset.lower() not in CHARSETS:
        raise InvalidInput(
            f'the content type multipart/form-data has the charset "{charset[:100]}"; supported are '
            f"{', '.join(CHARSETS)}",
            stage="decode",
        )
    parser = MultiPartParser(headers, chunks, max_files=settings.max_images, max_fields=settings.max_images)
    parser.spool_max_size = settings.max_body_bytes  # never on disk: images may be private
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidInput(f"the multipart form is malformed: {error.message}", stage="decode") from error
    except ClientDisconnect as error:
        raise Cancelled("the client went away before its request was complete") from error
    try:
        fields = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
        top_k = top_k_of_form(fields, of_query)
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        uploads = [Upload(await file.read(), file.filename) for file in files]
    finally:
        await form.close()
    if not uploads:
        raise InvalidInput("the multipart form has no file; send each image as a file part", stage="decode")
    return Uploads(uploads, top_k)


def parse_json(body: bytes) -> Any:
    """The JSON value in a body; raises InvalidInput that says where it is not JSON.

    TensorFlow Serving accepts more, such as `NaN`; so does this, if the value is an object without images.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        refusal = InvalidInput(f"the body is not JSON: {error}", stage="decode")
    with contextlib.suppress(InvalidInput):
        value = json_document.parse_object(body)
        if "images" not in value:
            return value
    raise refusal


def json_uploads(value: Any, of_query: int | None, check_number: Callable[[int], None]) -> Uploads:
    """The images in a JSON object as `JSON_FORM` shows it, and its `top_k` or else `of_query`.

    An image that is not base64 is an upload with an error.

    Args:
        value: what the body holds.
        of_query: the query's `top_k`.
        check_number: raises InvalidInput if there are too many images; called before they are decoded.

    Raises:
        InvalidInput: another form, a `top_k` that differs from the query's, or too many images.
    """
    if not isinstance(value, dict) or not isinstance(value.get("images"), list):
        raise InvalidInput(f"the JSON is not of the form {JSON_FORM}", stage="decode")
    unknown = value.keys() - {"images", "top_k"}
    if unknown:
        raise InvalidInput(
            f'the JSON has a member "{min(unknown)}"; it is of the form {JSON_FORM}', stage="decode"
        )
    top_k = value.get("top_k")
    if top_k is not None and type(top_k) is not int:
        raise InvalidInput(f"top_k is {_shown(top_k)}; it is a whole number", stage="decode")
    top_k = agreed(of_query, top_k, "the JSON")
    check_number(len(value["images"]))
    return Uploads([_from_base64(each) for each in value["images"]], top_k)


def _shown(value: Any) -> str:
    """A JSON value for an error's text: it may be nested more deeply than orjson can write."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    return orjson.dumps(value).decode()


def _from_base64(value: Any) -> Upload:
    text = value.get("b64") if isinstance(value, dict) and len(value) == 1 else value
    if not isinstance(text, str):
        error = BadImage('each of "images" is {"b64": "…"}', stage="decode")
        return Upload(b"", error=error)
    try:
        # Both alphabets (RFC 4648), padded or not, in one line or in several.
        digits = text.encode("ascii").translate(_URL_SAFE, json_document.WHITE_SPACE).rstrip(b"=")
        return Upload(binascii.a2b_base64(digits + b"=" * (-len(digits) % 4), strict_mode=True))
    except ValueError as error:
        return Upload(b"", error=BadImage(f"the image is not base64: {error}", stage="decode"))


_URL_SAFE = bytes.maketrans(b"-_", b"+/")

"""What an upload may lack: the padding of base64, but not its body or a form's boundary."""

from __future__ import annotations

import base64
from collections.abc import Callable

import httpx
import pytest

from serving.rest.uploads import json_uploads
from tests.doors.wire import PATH

NO_IMAGES = (
    'the JSON has no "images", as in {"images": [{"b64": "…"}], "top_k": 5}, nor "examples", as in '
    "TensorFlow Serving's API"
)
NO_BODY = "the request has no body; send an image file as the body"


@pytest.mark.parametrize(
    ("content_type", "body", "says"),
    [
        ("image/png", b"", NO_BODY),
        (None, b"", NO_BODY),
        ("application/x-www-form-urlencoded", b"", NO_BODY),  # as of `curl -d ''`
        (
            "application/json",
            b'{"image": {"b64": "AA=="}}',
            NO_IMAGES,
        ),
        ("multipart/form-data", b"x", "the content type multipart/form-data has no boundary"),
    ],
)
async def test_what_a_request_lacks_is_named(
    client: httpx.AsyncClient, content_type: str | None, body: bytes, says: str
) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    answer = await client.post(PATH, content=body, headers=headers)
    assert (answer.status_code, answer.json()["detail"]) == (400, says)


@pytest.mark.parametrize("content_type", [None, "application/x-www-form-urlencoded", "image/jpeg"])
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"\0\0\0\x24ftypheic\0\0\0\0mif1heic", "HEIC, as phones write it"),
        (b"II*\0\x08\0\0\0", "TIFF"),
        (base64.b64encode(b"\x89PNG\r\n\x1a\n"), "base64 of a PNG, to be decoded first"),
    ],
)
async def test_something_other_than_an_image_is_named_whatever_the_content_type(
    client: httpx.AsyncClient, content_type: str | None, body: bytes, kind: str
) -> None:
    """As by `curl --data-binary @photo.heic`."""
    headers = {} if content_type is None else {"content-type": content_type}
    answer = await client.post(PATH, content=body, headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.json()["detail"].startswith(f"this is {kind}; it is not an image of a supported kind: JPEG")


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("size", range(6))
def test_base64_may_lack_its_padding_whatever_its_length(encode: Callable[[bytes], bytes], size: int) -> None:
    data = bytes(range(250, 250 + size))
    padded = encode(data).decode()
    uploads = json_uploads({"images": [{"b64": padded}, {"b64": padded.rstrip("=")}]}, None, lambda _: None)
    assert [(each.data, each.error) for each in uploads.images] == [(data, None)] * 2

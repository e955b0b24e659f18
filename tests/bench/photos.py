"""The photographs that every contestant gets, and the forms of request in which servers take them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

BYTES_PER_PIXEL = 55_000 / (
    500 * 375
)  # of the photographs that the figures of other servers were measured with
BOUNDARY = "photograph-a7c1"
TRITON_HEADER_BYTES = 256


class Requests(NamedTuple):
    """Requests to post in turn: a folder of bodies with their `list`, and the headers that go with each."""

    folder: Path
    headers: dict[str, str]


def bodies(folder: Path) -> list[bytes]:
    """What `write` put into a folder."""
    return [(folder / name).read_bytes() for name in (folder / "list").read_text().split()]


def unpack(archive: Path, most: int = 96) -> list[bytes]:
    """The JPEG files of a zip archive, as they are."""
    with zipfile.ZipFile(archive) as opened:
        names = [name for name in opened.namelist() if name.lower().endswith((".jpg", ".jpeg"))][:most]
        return [opened.read(name) for name in names]


def resized(photos: Sequence[bytes], width: int, height: int) -> list[bytes]:
    """The same photographs, cropped and scaled to one size, at the JPEG quality (one for all) with which they
    come closest to `BYTES_PER_PIXEL`."""
    images = [ImageOps.fit(Image.open(io.BytesIO(photo)).convert("RGB"), (width, height)) for photo in photos]

    def encoded(quality: int) -> list[bytes]:
        files = [io.BytesIO() for _ in images]
        for image, file in zip(images, files, strict=True):
            image.save(file, "JPEG", quality=quality)
        return [file.getvalue() for file in files]

    wanted = BYTES_PER_PIXEL * width * height * len(photos)
    low, high = 1, 95
    while low < high:  # the lowest quality that has the size
        middle = (low + high) // 2
        low, high = (middle + 1, high) if sum(map(len, encoded(middle))) < wanted else (low, middle)
    return encoded(low)


def as_jpeg(photo: bytes) -> tuple[bytes, dict[str, str]]:
    """The file is the body."""
    return photo, {"Content-Type": "image/jpeg"}


def as_form(field: str) -> Callable[[bytes], tuple[bytes, dict[str, str]]]:
    """A form with one file (RFC 7578)."""
    head = (
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; "
        f'name="{field}"; filename="photo.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    )

    def body(photo: bytes) -> tuple[bytes, dict[str, str]]:
        whole = head.encode() + photo + f"\r\n--{BOUNDARY}--\r\n".encode()
        return whole, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}

    return body


def as_triton(photo: bytes) -> tuple[bytes, dict[str, str]]:
    """Triton's binary tensor extension: a JSON header, then a BYTES element with its length before it. The
    header is padded, so that its length, which a header of HTTP tells, is the same for all."""
    element = len(photo).to_bytes(4, "little") + photo
    size = {"binary_data_size": len(element)}
    tensor = {"name": "photo", "shape": [1, 1], "datatype": "BYTES", "parameters": size}
    head = json.dumps({"inputs": [tensor]}).ljust(TRITON_HEADER_BYTES)
    headers = {"Inference-Header-Content-Length": str(TRITON_HEADER_BYTES)}
    return head.encode() + element, headers | {"Content-Type": "application/octet-stream"}


def write(
    photos: Sequence[bytes], folder: Path, form: Callable[[bytes], tuple[bytes, dict[str, str]]] = as_jpeg
) -> Requests:
    """Put a request's body for each photograph into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    headers: dict[str, str] = {}
    for index, photo in enumerate(photos):
        body, headers = form(photo)
        (folder / str(index)).write_bytes(body)
    (folder / "list").write_text("".join(f"{index}\n" for index in range(len(photos))))
    return Requests(folder, headers)

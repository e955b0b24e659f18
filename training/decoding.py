"""Encoded images as arrays: decoded and resized by Pillow.

The result is that of `signatures.decode_image` in the graph, and of the gateway, to within one step of 255.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GREY_MODES = ("1", "L", "LA", "I", "I;16", "F")
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")
OTHER_SUFFIXES = (".avif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".pgm", ".ppm", ".tif", ".tiff")

_EXIF_ORIENTATION = 0x0112
# What brings an image of each EXIF orientation upright (EXIF 2.32, 4.6.4.A); 1 is upright already.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)


class Undecodable(Exception):
    """A file that is not an image, or is truncated."""


def open_image(encoded: bytes) -> Image.Image:
    """The image upright, in its own mode; of an animation the first frame."""
    try:
        image = Image.open(io.BytesIO(encoded))
        image.load()
        # not `ImageOps.exif_transpose`, which fails if the rest of the EXIF data cannot be written back
        transpose = _UPRIGHT.get(_orientation(image))
        return image if transpose is None else image.transpose(transpose)
    except Exception as error:  # damaged bytes make decoders raise almost anything
        raise Undecodable(str(error)) from error


def size_and_mode(encoded: bytes) -> tuple[tuple[int, int], str]:
    """(width, height) once upright, and Pillow's mode, from the header alone."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            width, height = image.size
            # without "exif" Pillow would decode all of a PNG to look for it at the end
            sideways = "exif" in image.info and _orientation(image) in _SIDEWAYS
            return (height, width) if sideways else (width, height), image.mode
    except Exception as error:  # damaged bytes make decoders raise almost anything
        raise Undecodable(str(error)) from error


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation, whatever it is; upright if the EXIF data is damaged, since the picture is not."""
    if image.format in ("JPEG", "MPO") and "exif" not in image.info:
        return 1  # Pillow would follow XMP; the gateway, like browsers, does not
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # damaged bytes make it raise almost anything
        return 1


def to_array(image: Image.Image, height: int, width: int, channels: int) -> NDArray[np.uint8]:
    """uint8 [height, width, channels]: alpha over white, grey or RGB as asked, antialiased bilinear."""
    if image.mode in ("I", "I;16", "F"):  # a transparent grey among them is no grey of 8 bits: left alone
        image = image.point(lambda value: value / 256).convert("L")
    elif "A" in image.getbands() or "transparency" in image.info:
        layered = image.convert("RGBA")
        image = Image.new("RGBA", layered.size, "white")
        image.alpha_composite(layered)
        image = image.convert("RGB")
    image = image.convert("L" if channels == 1 else "RGB")
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.uint8).reshape(height, width, channels)

"""Encoded images as arrays: the named algorithm of decode and resize, by Pillow.

The same as `signatures.decode_image` in the graph and as the gateway's, to within one step of 255.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

GREY_MODES = ("1", "L", "LA", "I", "I;16", "F")
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")

_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


class Undecodable(Exception):
    """A file that is not an image, or is cut short."""


def open_image(encoded: bytes) -> Image.Image:
    """The image upright, in its own mode; of an animation the first frame."""
    try:
        image = Image.open(io.BytesIO(encoded))
        image.load()
        return ImageOps.exif_transpose(image)
    except _ERRORS as error:
        raise Undecodable(str(error)) from error


def size_and_mode(encoded: bytes) -> tuple[tuple[int, int], str]:
    """(width, height) and Pillow's mode, from the header alone."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.size, image.mode
    except _ERRORS as error:
        raise Undecodable(str(error)) from error


def to_array(image: Image.Image, height: int, width: int, channels: int) -> NDArray[np.uint8]:
    """uint8 [height, width, channels]: alpha over white, grey or RGB as asked, antialiased bilinear."""
    if image.mode in ("I", "I;16", "F"):
        image = image.point(lambda value: value / 256).convert("L")
    if "A" in image.getbands() or "transparency" in image.info:
        layered = image.convert("RGBA")
        image = Image.new("RGBA", layered.size, "white")
        image.alpha_composite(layered)
        image = image.convert("RGB")
    image = image.convert("L" if channels == 1 else "RGB")
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.uint8).reshape(height, width, channels)

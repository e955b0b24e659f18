"""Images that tests make for themselves."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image


def gradient(width: int = 48, height: int = 32, mode: str = "RGB") -> Image.Image:
    """A picture with a different value in every corner, so that turns and flips show."""
    across = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    down = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    rgb = np.stack([across, down, 255 - across], axis=-1).round().astype(np.uint8)
    return Image.fromarray(rgb).convert(mode)


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    """The image as a file."""
    stream = BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def png_bomb(width: int = 30_000, height: int = 30_000) -> bytes:
    """A PNG of one colour that is about 100 kB on the wire, and `width` × `height` pixels by its header."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    row = b"\0" + b"\0" * ((width + 7) // 8)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(row * height, 9))
        + chunk(b"IEND", b"")
    )

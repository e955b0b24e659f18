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


def jpeg_of_scans(more: int, grey: int) -> bytes:
    """A progressive JPEG of one grey, 64×64, with so many scans more, which but say that all blocks end."""
    plain = encoded(Image.new("L", (64, 64), grey), "JPEG", progressive=True)
    # A Huffman table of one code, of one bit: 0xE0, "so many blocks have ended"; it takes fourteen more bits.
    table = b"\xff\xc4" + struct.pack(">HB", 20, 0x10) + bytes([1] + [0] * 15) + b"\xe0"
    scan = b"\xff\xda" + struct.pack(">H6B", 8, 1, 1, 0, 1, 63, 0) + b"\x00\x01"
    return plain[:-2] + table + scan * more + plain[-2:]


def run_length_bmp(width: int, height: int, grey: int, bits: int = 8) -> bytes:
    """A BMP of one grey, a few bytes a row (Windows' BITMAPINFOHEADER, BI_RLE8 or, with 4 `bits`, BI_RLE4).

    With 4 bits the grey is one of sixteen: a multiple of 17.
    """
    greys = 2**bits
    index = grey * (greys - 1) // 255
    pixels = index if bits == 8 else index * 17  # of four bits each there are two in a byte
    whole, rest = divmod(width, 255)
    row = bytes((255, pixels)) * whole + bytes((rest, pixels)) * bool(rest) + b"\0\0"
    data = row * height + b"\0\1"
    palette = b"".join(bytes((value, value, value, 0)) for value in range(0, 256, 255 // (greys - 1)))
    offset = 14 + 40 + len(palette)
    compression = {8: 1, 4: 2}[bits]
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 0, 0, greys, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + header + palette + data

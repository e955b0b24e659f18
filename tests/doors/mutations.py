"""Images of every format, and what a bad disk, a bad line or a bad person makes of them."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.support.pictures import encoded

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP")


def originals(seed: int) -> list[bytes]:
    """A noisy picture in each format, in grey and in colour; the same for the same seed."""
    rng = random.Random(seed)
    noise = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (24, 32, 3), np.uint8)
    colour = Image.fromarray(noise)
    return [encoded(image, name) for name in FORMATS for image in (colour, colour.convert("L"))]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One of: bits flipped anywhere, a tail cut off, an edited header, a piece doubled, moved or zeroed."""
    changed = bytearray(data)
    kind = rng.randrange(6)
    if kind == 0:
        for _ in range(rng.randint(1, 16)):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del changed[rng.randrange(len(changed)) :]
    elif kind == 2:  # sizes, depths and lengths are in the first bytes
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(min(len(changed), 64))] = rng.choice((0, 1, 127, 128, 255))
    else:
        start = rng.randrange(len(changed))
        piece = changed[start : start + rng.randint(1, 64)]
        if kind == 3:
            changed[start:start] = piece
        elif kind == 4:
            changed[rng.randrange(len(changed)) :] = piece
        else:
            changed[start : start + len(piece)] = bytes(len(piece))
    return bytes(changed)


def mutations(count: int, seed: int) -> Iterator[bytes]:
    """`count` mutated files, the same for the same seed."""
    rng = random.Random(seed)
    files = originals(seed)
    for index in range(count):
        yield mutated(files[index % len(files)], rng)

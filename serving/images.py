"""Encoded image files to pixels, within limits.

JPEG is decoded by libjpeg-turbo (simplejpeg) with DCT scaling down to at least twice the model's
input, which is where the difference to a full decode ends to matter and most of the time is saved;
everything else by Pillow. The resize is antialiased bilinear (Pillow's BILINEAR, the same filter as
`tf.image.resize(..., antialias=True)`), as in training and in the `serving_bytes` signature.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from serving.errors import BadImage, Overloaded, TooLarge, out_of_memory

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
CONTENT_TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp")

# The limit is checked here, from the header, with an error of our own; Pillow's would come later.
Image.MAX_IMAGE_PIXELS = None

_SCAN = b"\xda"
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
# DCT scaling stays at or above this multiple of the model's input: at 2 the mean difference of a
# pixel to a full decode is about 1 of 255 at 32×32, and 0.04 at 224×224.
_DCT_MARGIN = 2
# Of one decoded image, at most: Pillow has 4 bytes for each of nearly all modes, and the picture twice while
# it is brought into another mode or upright; libjpeg keeps the coefficients of a progressive file.
_PIXEL_BYTES = 8
_JPEG_PIXEL_BYTES = 4
# Each thread may have so many at any time: it is not worth asking.
_FEW_PIXELS = 2**20
_STRIP_PIXELS = 2**20

Room = Callable[[int], AbstractContextManager[None]]
"""Room for so many bytes while the context lasts; raises Overloaded if there is none."""


def anything_fits(_size_bytes: int) -> AbstractContextManager[None]:
    """There is room for all."""
    return nullcontext()


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """What a model takes: uint8 [height, width, channels], channels 1 (grey) or 3 (RGB)."""

    height: int
    width: int
    channels: int


def decode(data: bytes, spec: ImageSpec, *, max_pixels: int, room: Room = anything_fits) -> np.ndarray:
    """The image in `data` as uint8 [height, width, channels], contiguous, of the size that `spec` says.

    EXIF orientation is honoured; transparency is laid over white; of an animation the first frame counts.

    Args:
        data: the file.
        spec: what to make of it.
        max_pixels: how many it may have.
        room: has room for its pixels while they are there; raises Overloaded if there is none.

    Raises:
        BadImage: not an image of a format that is taken, or a damaged one.
        TooLarge: more than `max_pixels` by its header; no pixel was decoded.
        Overloaded: there is no memory for its pixels.
    """
    if not data:
        raise BadImage("the image is empty (0 bytes)", stage="decode")
    try:
        pixels = _decode_jpeg(data, spec, max_pixels, room)
        return _decode_any(data, spec, max_pixels, room) if pixels is None else pixels
    except (TooLarge, Overloaded):
        raise
    except MemoryError:
        raise out_of_memory("decode") from None
    except UnidentifiedImageError:
        raise BadImage(
            f"these {len(data)} bytes are no image; taken are {', '.join(FORMATS)}", stage="decode"
        ) from None
    except Exception as error:  # hostile bytes make decoders raise almost anything
        raise BadImage(f"the image is damaged: {error}", stage="decode") from error


def _decode_jpeg(data: bytes, spec: ImageSpec, max_pixels: int, room: Room) -> np.ndarray | None:
    """The fast path; None where Pillow must have a look: no JPEG, CMYK, damaged or unusual."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        _check_pixels(width, height, max_pixels)
        if colorspace not in ("RGB", "YCbCr", "Gray"):
            return None
        orientation = _jpeg_orientation(data)
        least = _DCT_MARGIN * max(spec.height, spec.width)
        with _room_for(width * height, _JPEG_PIXEL_BYTES, room):
            pixels = simplejpeg.decode_jpeg(
                data, "GRAY" if colorspace == "Gray" else "RGB", min_height=least, min_width=least
            )
    except ValueError:
        return None
    upright = _upright(Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels), orientation)
    return _resize(upright, spec)


def _jpeg_orientation(data: bytes) -> int:
    if not _has_exif(data):
        return 1
    with _no_warnings(), Image.open(BytesIO(data), formats=("JPEG",)) as header:
        return int(header.getexif().get(_EXIF_ORIENTATION, 1))


def _has_exif(data: bytes) -> bool:
    """Whether one of the segments before the scan has EXIF (ITU-T T.81, B.1.1.4: marker, length, content)."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != _SCAN:
        if data[at + 4 : at + 10] == b"Exif\x00\x00":
            return True
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def _decode_any(data: bytes, spec: ImageSpec, max_pixels: int, room: Room) -> np.ndarray:
    with _no_warnings(), Image.open(BytesIO(data), formats=FORMATS) as image:
        _check_pixels(image.width, image.height, max_pixels)
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        if image.format == "JPEG":
            least = _DCT_MARGIN * max(spec.height, spec.width)
            image.draft(None, (least, least))
        with _room_for(image.width * image.height, _PIXEL_BYTES, room):
            _load(image)
            return _resize(_upright(_to_8_bits(image), orientation), spec)


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except OSError as error:
        if "out of memory" in str(error):  # what Pillow makes of its decoders' own failures to allocate
            raise out_of_memory("decode") from None
        raise


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Keep Pillow from warning of odd metadata; what matters raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise TooLarge(
            f"the image is {width}×{height}, {width * height:,} pixels; at most {max_pixels:,} are taken",
            stage="decode",
        )


def _room_for(pixels: int, pixel_bytes: int, room: Room) -> AbstractContextManager[None]:
    return nullcontext() if pixels <= _FEW_PIXELS else room(pixels * pixel_bytes)


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    transpose = _UPRIGHT.get(orientation)
    return image if transpose is None else image.transpose(transpose)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """The same picture in mode L or RGB, transparency over white."""
    if image.mode.startswith("I"):  # 16-bit grey; converting would clip it to 255
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        return _over_white(image)
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")


def _over_white(image: Image.Image) -> Image.Image:
    """In strips: laying all of it over white at once would take three times the memory of the image."""
    opaque = Image.new("RGB", image.size)
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        white = Image.new("RGBA", strip.size, (255, 255, 255, 255))
        white.alpha_composite(strip)
        opaque.paste(white.convert("RGB"), (0, top))
    return opaque


def _resize(image: Image.Image, spec: ImageSpec) -> np.ndarray:
    mode = "L" if spec.channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if image.size != (spec.width, spec.height):
        image = image.resize((spec.width, spec.height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(spec.height, spec.width, spec.channels)

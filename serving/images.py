"""Encoded image files to pixels, within limits.

JPEG is decoded by libjpeg-turbo (simplejpeg) with DCT scaling down to at least twice the model's
input, where the difference from a full decode no longer matters and most of the time is saved;
everything else by Pillow. The resize is antialiased bilinear (Pillow's BILINEAR, the same filter as
`tf.image.resize(..., antialias=True)`), as in training and in the `serving_bytes` signature.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from serving.errors import BadImage, Overloaded, TooLarge, out_of_memory
from serving.file_kinds import kind_of

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
CONTENT_TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp")

# The limit is checked here, from the header, with an error of our own; Pillow's would come later.
Image.MAX_IMAGE_PIXELS = None

# A marker in a JPEG (ITU-T T.81, B.1.1.3) that is followed by a segment: no stuffed or fill byte, no restart.
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])", re.DOTALL)
_APP1, _SCAN, _END = 0xE1, 0xDA, 0xD9
_BASELINE = (0xC0, 0xC1)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # the rest are tables
# libjpeg goes over the whole image for each scan, and a scan can be a hundred bytes. At 64 megapixels each
# took 5 ms, so 32 MB of them would occupy a thread for half an hour. Encoders write about ten.
_MOST_SCANS = 100
# Pillow reads them one by one, in Python. A profile or XMP of megabytes comes in dozens.
_MOST_SEGMENTS = 10_000
# Pillow unpacks them in Python, up to 0.16 s a megapixel, however small the file.
_RUN_LENGTH = (1, 2)  # RLE8 and RLE4 in a BMP's header
_MOST_RUN_LENGTH_PIXELS = 4 * 2**20
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
# The most memory that a decoded image takes per pixel: Pillow has 4 bytes in nearly all modes, and the
# picture twice while it is converted or rotated; libwebp has three pictures for the frames of an animation;
# libjpeg keeps the coefficients of a progressive file.
_PIXEL_BYTES = 8
_WEBP_PIXEL_BYTES = 16
_JPEG_PIXEL_BYTES = 4
# As in JPEG and GIF. To scale a longer side down, Pillow takes 16 bytes for each of its pixels.
_MOST_A_SIDE = 65_535
# Each thread may always have this much: it is not worth asking.
_FEW_PIXELS = 2**20
_STRIP_PIXELS = 2**20

Room = Callable[[int], AbstractContextManager[None]]
"""Room for this many bytes while the context lasts; raises Overloaded if there is none."""


def anything_fits(_size_bytes: int) -> AbstractContextManager[None]:
    """There is always room."""
    return nullcontext()


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """What a model takes: uint8 [height, width, channels], channels 1 (grey) or 3 (RGB)."""

    height: int
    width: int
    channels: int


def decode(data: bytes, spec: ImageSpec, *, max_pixels: int, room: Room = anything_fits) -> np.ndarray:
    """The image in `data` as uint8 [height, width, channels], contiguous, of the size that `spec` says.

    EXIF orientation is honoured; transparency is composited over white; of an animation the first frame
    counts.

    Args:
        data: the file.
        spec: what to make of it.
        max_pixels: how many it may have.
        room: grants memory for its pixels while they are there; raises Overloaded if there is none.

    Raises:
        BadImage: not an image of a supported format, or a damaged one, or a JPEG made to take long.
        TooLarge: by its header it has more than `max_pixels`, or than its kind may have; nothing was decoded.
        Overloaded: there is no memory for its pixels.
    """
    if not data:
        raise BadImage("the image is empty (0 bytes)", stage="decode")
    try:
        pixels = _decode_jpeg(data, spec, max_pixels, room)
        return _decode_any(data, spec, max_pixels, room) if pixels is None else pixels
    except (BadImage, TooLarge, Overloaded):
        raise
    except MemoryError:
        raise out_of_memory("decode") from None
    except UnidentifiedImageError:
        kind = kind_of(data)
        subject = f"this is {kind}; it is" if kind else f"these {len(data)} bytes are"
        text = f"{subject} not an image of a supported kind: {', '.join(FORMATS)}"
        raise BadImage(text, stage="decode") from None
    except Exception as error:  # hostile bytes make decoders raise almost anything
        raise BadImage(f"the image is damaged: {error}", stage="decode") from error


def _decode_jpeg(data: bytes, spec: ImageSpec, max_pixels: int, room: Room) -> np.ndarray | None:
    """The fast path; None if it is for Pillow: not a JPEG, CMYK, damaged or unusual."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    has_exif = _look_through(data)
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        _check_pixels(width, height, max_pixels)
        if colorspace not in ("RGB", "YCbCr", "Gray"):
            return None
        least = _DCT_MARGIN * max(spec.height, spec.width)
        with _room_for(width * height, _JPEG_PIXEL_BYTES, room):
            pixels = simplejpeg.decode_jpeg(
                data, "GRAY" if colorspace == "Gray" else "RGB", min_height=least, min_width=least
            )
    except (ValueError, KeyError):  # KeyError: simplejpeg has no name for the subsampling
        return None
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return _resize(_upright(image, _jpeg_orientation(data) if has_exif else 1), spec)


def _look_through(data: bytes) -> bool:
    """Whether a JPEG has EXIF, from its segments (ITU-T T.81, B.1.1.4: marker, length, content).

    Raises:
        BadImage: it has more segments or scans than a picture needs; decoding it would take
            disproportionately long.
    """
    has_exif, frame, scans, at = False, 0, 0, 2
    for _ in range(_MOST_SEGMENTS):
        found = _MARKER.search(data, at)
        marker = _END if found is None else found[1][0]
        if found is None or marker == _END:
            return has_exif
        at = found.end()
        if marker in _FRAMES:
            frame = marker
        elif marker == _SCAN:
            scans += 1
            if frame in _BASELINE:  # each of its scans has bits for every block
                return has_exif
            if scans > _MOST_SCANS:
                raise BadImage(f"the image has over {_MOST_SCANS} scans; about ten are usual", stage="decode")
        elif marker == _APP1 and data.startswith(b"Exif\x00\x00", at + 2):
            has_exif = True
        at += int.from_bytes(data[at : at + 2], "big")
    raise BadImage(f"the image has over {_MOST_SEGMENTS:,} segments", stage="decode")


def _jpeg_orientation(data: bytes) -> Any:
    try:
        with _no_warnings(), Image.open(BytesIO(data), formats=("JPEG",)) as header:
            return _orientation(header)
    except OSError:  # Pillow looks into segments that libjpeg skips
        return 1


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation, whatever it is; upright if the EXIF data is damaged, since the picture is not."""
    if image.format in ("JPEG", "MPO") and "exif" not in image.info:
        return 1  # Pillow would follow XMP; the fast path, like browsers, does not
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:  # hostile bytes make it raise almost anything
        return 1


def _decode_any(data: bytes, spec: ImageSpec, max_pixels: int, room: Room) -> np.ndarray:
    with _no_warnings(), Image.open(BytesIO(data), formats=FORMATS) as image:
        _check_pixels(image.width, image.height, max_pixels)
        if image.format == "BMP" and image.info.get("compression") in _RUN_LENGTH:
            _check_pixels(image.width, image.height, _MOST_RUN_LENGTH_PIXELS, " of a run-length encoded BMP")
        if image.format == "JPEG":
            least = _DCT_MARGIN * max(spec.height, spec.width)
            image.draft(None, (least, least))
        pixel_bytes = _WEBP_PIXEL_BYTES if image.format == "WEBP" else _PIXEL_BYTES
        with _room_for(image.width * image.height, pixel_bytes, room):
            _load(image)
            # Not earlier: without EXIF at its beginning, Pillow decodes all of a PNG to look at its end.
            return _resize(_upright(_to_8_bits(image), _orientation(image)), spec)


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except OSError as error:
        if "out of memory" in str(error):  # what Pillow makes of its decoders' own failures to allocate
            raise out_of_memory("decode") from None
        raise


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Keep Pillow from warning about odd metadata; what matters raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _check_pixels(width: int, height: int, most: int, of_what: str = "") -> None:
    if width * height > most:
        raise TooLarge(
            f"the image is {width}×{height}, {width * height:,} pixels; at most {most:,} are allowed"
            f"{of_what}",
            stage="decode",
        )
    if max(width, height) > _MOST_A_SIDE:
        raise TooLarge(
            f"the image is {width}×{height}; at most {_MOST_A_SIDE:,} pixels a side are allowed",
            stage="decode",
        )


def _room_for(pixels: int, pixel_bytes: int, room: Room) -> AbstractContextManager[None]:
    return nullcontext() if pixels <= _FEW_PIXELS else room(pixels * pixel_bytes)


def _upright(image: Image.Image, orientation: Any) -> Image.Image:
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

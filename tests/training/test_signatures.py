"""Decoding in the graph and by Pillow is the same; every image file becomes what the model takes."""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from training import decoding
from training.signatures import decode_image

SIZES = [(8, 8, 1), (32, 32, 3), (224, 160, 3)]


def picture(mode: str, width: int = 90, height: int = 70) -> Image.Image:
    """A picture with edges, gradients and noise, in the mode."""
    random = np.random.default_rng(5)
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([rows * 3 % 256, columns * 2 % 256, (rows + columns) % 256], axis=-1)
    pixels[20:40, 30:60] = (250, 20, 60)
    noisy = np.clip(pixels + random.integers(-20, 20, pixels.shape), 0, 255).astype(np.uint8)
    image = Image.fromarray(noisy).convert("RGB")
    if mode in ("LA", "RGBA"):
        image = image.convert(mode)
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image.convert(mode)


def encoded(image: Image.Image, kind: str, **metadata: bytes) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **metadata)
    return file.getvalue()


def difference(file: bytes, shape: tuple[int, int, int]) -> int:
    """The largest difference of a pixel between the graph's decode and Pillow's."""
    in_graph = decode_image(file, *shape).numpy()
    by_pillow = decoding.to_array(decoding.open_image(file), *shape)
    assert in_graph.dtype == by_pillow.dtype == np.uint8
    assert in_graph.shape == by_pillow.shape == shape
    return int(np.abs(in_graph.astype(int) - by_pillow.astype(int)).max())


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *(("1", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGB", "PNG"), ("RGBA", "PNG")),
        *(("L", "JPEG"), ("RGB", "JPEG"), ("CMYK", "JPEG"), ("RGB", "BMP"), ("RGBA", "BMP")),
        ("P", "GIF"),
    ],
)
def test_graph_and_pillow_agree(mode: str, kind: str, shape: tuple[int, int, int]) -> None:
    assert difference(encoded(picture(mode), kind), shape) <= 2


@pytest.mark.parametrize("transparent", [None, 40_000])
def test_graph_and_pillow_agree_on_deep_greys(transparent: int | None) -> None:
    grey = np.random.default_rng(0).integers(0, 2**16, (70, 90)).astype(np.uint16)
    grey[:20] = 40_000
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG", **({} if transparent is None else {"transparency": transparent}))
    assert difference(file.getvalue(), (32, 32, 1)) <= 1


def test_graph_and_pillow_agree_on_photographs(test_data: Path) -> None:
    with zipfile.ZipFile(test_data / "photos.zip") as photos:
        names = photos.namelist()[:20]
        for name in names:
            assert difference(photos.read(name), (32, 32, 3)) <= 2
            assert difference(photos.read(name), (224, 224, 3)) <= 2
    assert len(names) == 20


def test_transparent_becomes_white_and_the_first_frame_counts() -> None:
    clear = Image.new("RGBA", (5, 5), (255, 0, 0, 0))
    assert (decode_image(encoded(clear, "PNG"), 5, 5, 3).numpy() == 255).all()
    frames = [Image.new("P", (4, 4), colour) for colour in (0, 1)]
    for frame in frames:
        frame.putpalette([10, 20, 30, 200, 210, 220])
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert (decode_image(file.getvalue(), 4, 4, 3).numpy() == (10, 20, 30)).all()


def test_colours_become_grey_by_bt601() -> None:
    red = Image.new("RGB", (3, 3), (255, 0, 0))
    assert (decode_image(encoded(red, "PNG"), 3, 3, 1).numpy() == round(255 * 0.299)).all()


def turned(orientation: int, *entries: bytes) -> bytes:
    """A JPEG of 40x20, black on the left, with EXIF data of this orientation and other 12-byte entries."""
    picture = Image.new("RGB", (40, 20), "white")
    picture.paste("black", (0, 0, 20, 20))
    fields = [struct.pack("<HHII", 0x0112, 3, 1, orientation), *entries]
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(fields)) + b"".join(fields) + bytes(4)
    file = io.BytesIO()
    picture.save(file, "JPEG", exif=exif)
    return file.getvalue()


@pytest.mark.parametrize(
    ("orientation", "size", "black"),
    [
        *((1, (40, 20), "left"), (2, (40, 20), "right"), (3, (40, 20), "right"), (4, (40, 20), "left")),
        *((5, (20, 40), "top"), (6, (20, 40), "top"), (7, (20, 40), "bottom"), (8, (20, 40), "bottom")),
    ],
)
def test_photographs_are_turned_upright(orientation: int, size: tuple[int, int], black: str) -> None:
    image = decoding.open_image(turned(orientation))
    assert decoding.size_and_mode(turned(orientation)) == (image.size, "RGB") == (size, "RGB")
    pixels = np.asarray(image)
    halves = {
        "left": (pixels[:, :16], pixels[:, 24:]),
        "right": (pixels[:, 24:], pixels[:, :16]),
        "top": (pixels[:16], pixels[24:]),
        "bottom": (pixels[24:], pixels[:16]),
    }
    dark, bright = halves[black]
    assert dark.max() < 60
    assert bright.min() > 195


def test_odd_exif_data_costs_no_photograph() -> None:
    """Such as a negative width: Pillow reads it, and cannot write it again."""
    file = turned(6, struct.pack("<HHIi", 0x0100, 9, 1, -5))
    assert decoding.open_image(file).size == (20, 40)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_damaged_exif_data_costs_no_photograph(file_format: str) -> None:
    file = encoded(picture("RGB"), file_format, exif=b"Exif\0\0no TIFF header")
    assert decoding.open_image(file).size == picture("RGB").size
    assert decoding.size_and_mode(file) == (picture("RGB").size, "RGB")


def test_what_xmp_says_of_a_photograph_goes_for_nothing() -> None:
    """As at the gateway: only EXIF turns a JPEG."""
    xmp = b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    file = encoded(Image.new("RGB", (40, 20)), "JPEG", xmp=xmp)
    assert decoding.open_image(file).size == (40, 20)


@pytest.mark.parametrize("file", [b"", b"not an image", encoded(picture("RGB"), "PNG")[:200]])
def test_what_is_no_image_is_refused(file: bytes) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode_image(file, 8, 8, 3)
    with pytest.raises(decoding.Undecodable):
        decoding.open_image(file)

"""Decoding: formats, modes, orientation, limits, damage."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from serving.errors import BadImage, Overloaded, TooLarge, out_of_memory
from serving.images import ImageSpec, decode
from tests.support.pictures import encoded, gradient, jpeg_of_scans, png_bomb, run_length_bmp

RGB = ImageSpec(16, 24, 3)
GREY = ImageSpec(16, 24, 1)
MAX_PIXELS = 10_000_000


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def reference(image: Image.Image, spec: ImageSpec) -> np.ndarray:
    mode = "L" if spec.channels == 1 else "RGB"
    resized = image.convert(mode).resize((spec.width, spec.height), Image.Resampling.BILINEAR)
    return np.asarray(resized).reshape(spec.height, spec.width, spec.channels)


@pytest.mark.parametrize("spec", [RGB, GREY], ids=["rgb", "grey"])
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_every_format_gives_the_picture(file_format: str, spec: ImageSpec) -> None:
    picture = gradient()
    pixels = decode(encoded(picture, file_format), spec, max_pixels=MAX_PIXELS)
    assert pixels.shape == (spec.height, spec.width, spec.channels)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    # PNG and BMP keep every pixel; the others lose a little.
    assert difference(pixels, reference(picture, spec)) <= (0 if file_format in ("PNG", "BMP") else 4)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_every_png_mode_gives_the_picture(mode: str) -> None:
    if mode == "I;16":
        grey = np.asarray(gradient(mode="L")).astype(np.uint16) * 257
        picture, plain = Image.fromarray(grey), gradient(mode="L")
    else:
        picture = gradient(mode="L" if mode == "1" else "RGB").convert(mode)
        plain = picture
    pixels = decode(encoded(picture, "PNG"), GREY, max_pixels=MAX_PIXELS)
    assert difference(pixels, reference(plain.convert("RGB"), GREY)) <= 1


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_every_jpeg_mode_gives_the_picture(mode: str) -> None:
    picture = gradient(mode=mode)
    pixels = decode(encoded(picture, "JPEG", quality=95), RGB, max_pixels=MAX_PIXELS)
    assert difference(pixels, reference(picture, RGB)) <= 4


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
def test_xmp_turns_no_photograph(mode: str) -> None:
    xmp = b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="3"/>'
    picture = gradient(mode=mode)
    pixels = decode(encoded(picture, "JPEG", quality=95, xmp=xmp), RGB, max_pixels=MAX_PIXELS)
    assert difference(pixels, reference(picture, RGB)) <= 4


def test_transparency_lies_over_white() -> None:
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    half = Image.new("RGBA", (20, 20), (0, 0, 0, 128))
    palette = Image.new("RGB", (20, 20), (10, 20, 30)).quantize(4)
    clear_index = palette.getpixel((0, 0))
    assert (decode(encoded(clear, "PNG"), RGB, max_pixels=MAX_PIXELS) == 255).all()
    assert (decode(encoded(half, "PNG"), RGB, max_pixels=MAX_PIXELS) == 127).all()
    assert (
        decode(encoded(palette, "PNG", transparency=clear_index), RGB, max_pixels=MAX_PIXELS) == 255
    ).all()


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(file_format: str, orientation: int) -> None:
    # Stored as a camera held that way would: turning it by its tag must give the upright picture.
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = gradient(96, 64)
    stored = upright if orientation == 1 else upright.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {} if file_format == "PNG" else {"quality": 95}
    data = encoded(stored, file_format, exif=exif, **options)
    assert difference(decode(data, RGB, max_pixels=MAX_PIXELS), reference(upright, RGB)) <= 4


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "damaged", [b"no header of TIFF", b"II", b"II*\0\x08\0\0\0\x05\0\x12\x01", bytes(40)]
)
def test_damaged_exif_costs_no_picture(file_format: str, damaged: bytes) -> None:
    data = encoded(gradient(), file_format, exif=b"Exif\0\0" + damaged)
    assert damaged in data
    assert difference(decode(data, RGB, max_pixels=MAX_PIXELS), reference(gradient(), RGB)) <= 4


def test_first_frame_of_an_animation_counts() -> None:
    first, second = Image.new("RGB", (20, 20), (200, 10, 10)), Image.new("RGB", (20, 20), (10, 200, 10))
    data = encoded(first, "GIF", save_all=True, append_images=[second])
    pixels = decode(data, RGB, max_pixels=MAX_PIXELS)
    assert pixels[..., 0].min() > 150
    assert pixels[..., 1].max() < 60


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_one_pixel_is_enough(file_format: str) -> None:
    pixels = decode(encoded(Image.new("RGB", (1, 1), (90, 90, 90)), file_format), RGB, max_pixels=MAX_PIXELS)
    assert np.abs(pixels.astype(int) - 90).max() <= 3


def test_large_jpeg_is_scaled_while_decoding_and_differs_little() -> None:
    picture = gradient(1200, 800)
    pixels = decode(encoded(picture, "JPEG", quality=95), RGB, max_pixels=MAX_PIXELS)
    assert difference(pixels, reference(picture, RGB)) <= 1.5


def test_pixels_are_counted_from_the_header() -> None:
    bomb = png_bomb()
    assert len(bomb) < 200_000
    with pytest.raises(TooLarge, match=r"30000×30000, 900,000,000 pixels; at most 10,000,000"):
        decode(bomb, RGB, max_pixels=MAX_PIXELS)
    with pytest.raises(TooLarge, match="48×32"):
        decode(encoded(gradient(), "JPEG"), RGB, max_pixels=1000)
    for width, height in ((70_000, 1), (1, 65_536)):
        with pytest.raises(TooLarge, match=f"{width}×{height}; at most 65,535 pixels a side are allowed"):
            decode(png_bomb(width, height), RGB, max_pixels=MAX_PIXELS)
    assert decode(png_bomb(65_535, 1), RGB, max_pixels=MAX_PIXELS).max() == 0


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_truncated_files_are_refused(file_format: str) -> None:
    data = encoded(gradient(200, 200), file_format)
    for keep in (2, 12, len(data) // 3, len(data) // 2):
        with pytest.raises(BadImage):
            decode(data[:keep], RGB, max_pixels=MAX_PIXELS)


def test_bytes_that_are_no_image_are_refused() -> None:
    with pytest.raises(BadImage, match="12 bytes are not an image of a supported kind: JPEG, PNG"):
        decode(b"hello, world", RGB, max_pixels=MAX_PIXELS)
    with pytest.raises(BadImage, match="empty"):
        decode(b"", RGB, max_pixels=MAX_PIXELS)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (encoded(gradient(), "TIFF"), "TIFF"),
        (encoded(gradient(), "AVIF"), "AVIF"),
        (encoded(gradient(), "ICO"), "an icon (ICO)"),
        (b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + bytes(500), "HEIC, as phones write it"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2" + bytes(500), "an MP4 or MOV file"),
        (b"%PDF-1.7\n%", "a PDF"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"\n<!DOCTYPE html><title>404</title>", "an HTML page"),
        (base64.b64encode(encoded(gradient(), "PNG")), "base64 of a PNG, to be decoded first"),
        (base64.b64encode(encoded(gradient(), "JPEG")), "base64 of a JPEG, to be decoded first"),
    ],
)
def test_files_that_people_take_for_pictures_are_told_by_name(data: bytes, kind: str) -> None:
    with pytest.raises(BadImage) as refused:
        decode(data, RGB, max_pixels=MAX_PIXELS)
    assert refused.value.message == (
        f"this is {kind}; it is not an image of a supported kind: JPEG, PNG, WEBP, GIF, BMP"
    )


@pytest.mark.parametrize("keep", [30, 100, 300])
def test_a_jpeg_that_ends_in_its_header_is_told_as_that(keep: int) -> None:
    data = encoded(gradient(), "JPEG")[:keep]
    with pytest.raises(BadImage, match=r"the image is damaged: .*[Tt]runcated"):
        decode(data, RGB, max_pixels=MAX_PIXELS)


def test_a_jpeg_of_a_subsampling_that_libjpeg_turbo_alone_has_a_name_for() -> None:
    """4:4:1, of factors 1×4 (ITU-T T.81, B.2.2); grey has the same blocks in it as at 4:4:4."""
    data = bytearray(encoded(Image.new("RGB", (16, 16), (90, 90, 90)), "JPEG", subsampling="4:4:4"))
    first_factors = data.index(b"\xff\xc0") + 11
    data[first_factors] = 0x14
    picture = Image.open(BytesIO(bytes(data)))
    pixels = decode(bytes(data), RGB, max_pixels=MAX_PIXELS)
    assert difference(pixels, reference(picture, RGB)) <= 1


def test_a_large_transparent_image_lies_over_white_as_a_whole_one_does() -> None:
    """It is laid over white in strips, of which this one has several."""
    values = np.random.default_rng(3).integers(0, 256, (1500, 1700, 4), np.uint8)
    picture = Image.fromarray(values)
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    whole = Image.alpha_composite(white, picture)
    for spec in (RGB, GREY):
        pixels = decode(encoded(picture, "PNG", compress_level=1), spec, max_pixels=MAX_PIXELS)
        assert np.array_equal(pixels, reference(whole.convert("RGB"), spec))


@pytest.mark.parametrize(("file_format", "pixel_bytes"), [("PNG", 8), ("JPEG", 4), ("WEBP", 16)])
def test_a_large_image_asks_for_room_before_it_is_decoded(file_format: str, pixel_bytes: int) -> None:
    data = encoded(gradient(1300, 1000), file_format)
    asked: list[int] = []
    inside: list[bool] = []

    @contextmanager
    def room(size_bytes: int) -> Iterator[None]:
        asked.append(size_bytes)
        inside.append(True)
        yield
        inside.pop()

    assert decode(data, RGB, max_pixels=MAX_PIXELS, room=room).shape == (16, 24, 3)
    assert inside == []
    assert asked == [1300 * 1000 * pixel_bytes]
    decode(encoded(gradient(), file_format), RGB, max_pixels=MAX_PIXELS, room=room)
    assert len(asked) == 1

    def full(_size_bytes: int) -> AbstractContextManager[None]:
        raise out_of_memory("decode")

    with pytest.raises(Overloaded):
        decode(data, RGB, max_pixels=MAX_PIXELS, room=full)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_nothing_is_decoded_without_room(file_format: str) -> None:
    """Else damage in the middle would have been found."""

    def full(_size_bytes: int) -> AbstractContextManager[None]:
        raise out_of_memory("decode")

    def no_memory(_size_bytes: int) -> AbstractContextManager[None]:
        raise MemoryError

    data = encoded(gradient(1300, 1000), file_format)
    for room in (full, no_memory):
        with pytest.raises(Overloaded, match="not enough memory for this request"):
            decode(data[: len(data) // 2], RGB, max_pixels=MAX_PIXELS, room=room)


def test_a_jpeg_of_more_scans_than_any_encoder_writes_is_refused() -> None:
    """Each takes a look at every block of the image, and but a few bytes."""
    for grey in (40, 200):
        assert abs(int(decode(jpeg_of_scans(90, grey), RGB, max_pixels=MAX_PIXELS).mean()) - grey) <= 2
    many = jpeg_of_scans(100, 40)
    assert len(many) < 4000
    with pytest.raises(BadImage, match="over 100 scans"):
        decode(many, RGB, max_pixels=MAX_PIXELS)


def test_a_jpeg_of_ten_thousand_segments_is_refused() -> None:
    data = encoded(gradient(), "JPEG")
    comment = b"\xff\xfe\x00\x02"
    for count, taken in ((5000, True), (10_000, False)):
        padded = data[:2] + comment * count + data[2:]
        if taken:
            assert decode(padded, RGB, max_pixels=MAX_PIXELS).shape == (16, 24, 3)
            continue
        with pytest.raises(BadImage, match="over 10,000 segments"):
            decode(padded, RGB, max_pixels=MAX_PIXELS)


@pytest.mark.parametrize("progressive", [False, True])
def test_what_follows_a_jpeg_is_not_looked_at(progressive: bool) -> None:
    """Phones put a film behind a photograph."""
    data = encoded(gradient(), "JPEG", progressive=progressive)
    film = np.random.default_rng(1).bytes(100_000) + b"\xff\xda\x00\x02" * 20_000
    alone, followed = (decode(each, RGB, max_pixels=MAX_PIXELS) for each in (data, data + film))
    assert np.array_equal(alone, followed)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_run_length_encoded_bmp_is_taken_up_to_four_megapixels(bits: int) -> None:
    """Pillow unpacks it in Python: ten seconds for 64 megapixels in a kilobyte."""
    pixels = decode(run_length_bmp(200, 100, 68, bits), RGB, max_pixels=MAX_PIXELS)
    assert (pixels == 68).all()
    with pytest.raises(TooLarge, match="at most 4,194,304 are allowed of a run-length encoded BMP"):
        decode(run_length_bmp(50_000, 100, 68, bits), RGB, max_pixels=MAX_PIXELS)

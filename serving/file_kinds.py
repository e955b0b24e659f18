"""What a file is, from its first bytes: an image of a supported kind, or something else by name."""

from __future__ import annotations

_BRAND = slice(8, 12)  # of ISO media files: `ftyp` stands behind four bytes of length, and then the brand
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
# Files that people take for pictures, or send instead of one.
_BEGINNINGS = (
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"8BPS", "a Photoshop document"),
    (b"\x00\x00\x01\x00", "an icon (ICO)"),
    (b"%PDF-", "a PDF"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "gzip data"),
    (b"data:image/", "a data URL: its base64 is to be decoded first"),
    (b"iVBORw0KGgo", "base64 of a PNG, to be decoded first"),
    (b"/9j/", "base64 of a JPEG, to be decoded first"),
)
# JPEG, PNG, GIF, BMP.
_IMAGES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM")
_LOOKED_AT_BYTES = 1024
_TEXTS = ((b"<svg", "SVG"), (b"<!doctype html", "an HTML page"), (b"<html", "an HTML page"))


def begins_as_image(data: bytes) -> bool:
    """Whether it begins as an image of a supported kind (`serving.images.FORMATS`)."""
    return data.startswith(_IMAGES) or (data[:4] == b"RIFF" and data[_BRAND] == b"WEBP")


def kind_of(data: bytes) -> str | None:
    """What the file is, in words that complete a sentence; None if that cannot be told."""
    if data[4:8] == b"ftyp":
        brand = data[_BRAND]
        if brand in _HEIF_BRANDS:
            return "HEIC, as phones write it"
        return "AVIF" if brand in _AVIF_BRANDS else "an MP4 or MOV file"
    for beginning, kind in _BEGINNINGS:
        if data.startswith(beginning):
            return kind
    text = data[:_LOOKED_AT_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"<"):  # an SVG may begin with a declaration, and a comment
        return next((kind for tag, kind in _TEXTS if tag in text), None)
    return None

"""What the clients of all protocols share: images as they are given, and kinds of error by their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from serving import errors
from serving.errors import InvalidInput, SluiceError

Image: TypeAlias = bytes | Path
"""An encoded image file: its bytes, or where it is."""

DEFAULT_TIMEOUT_S = 60.0

_KINDS: dict[str, type[SluiceError]] = {kind.kind: kind for kind in errors.all_kinds()}


def as_error(
    kind: str, message: str, *, stage: str | None = None, retry_after_s: float | None = None
) -> SluiceError:
    """The error that a gateway names by its kind; one of no known kind is Internal."""
    return _KINDS.get(kind, errors.Internal)(message, stage=stage, retry_after_s=retry_after_s)


def read_all(images: Image | Sequence[Image]) -> list[bytes]:
    """The bytes of one image or of several; raises OSError for a file that cannot be read."""
    several = [images] if isinstance(images, bytes | Path) else images
    return [each.read_bytes() if isinstance(each, Path) else bytes(each) for each in several]


def check_version(version: int | None, label: str | None) -> None:
    """Raise InvalidInput if a version is given twice over."""
    if version is not None and label is not None:
        raise InvalidInput("a version and a label are given; give one of them")

"""What the clients of all protocols share: what is asked, and kinds of error by their names."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeAlias

from serving import errors
from serving.errors import InvalidInput, SluiceError

Image: TypeAlias = bytes | bytearray | memoryview | Path
"""An encoded image file: its bytes, or where it is."""

DEFAULT_TIMEOUT_S = 60.0

_OCTETS = (bytes, bytearray, memoryview)

_KINDS: dict[str, type[SluiceError]] = {kind.kind: kind for kind in errors.all_kinds()}


def as_error(
    kind: str, message: str, *, stage: str | None = None, retry_after_s: float | None = None
) -> SluiceError:
    """The error that a gateway names by its kind; one of no known kind is Internal."""
    return _KINDS.get(kind, errors.Internal)(message, stage=stage, retry_after_s=retry_after_s)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a gateway: images as their bytes, and of which model, if not the default one."""

    images: Sequence[bytes]
    model: str | None
    version: int | None
    label: str | None
    top_k: int | None

    @classmethod
    def of(
        cls,
        images: Image | Sequence[Image],
        model: str | None,
        version: int | None,
        label: str | None,
        top_k: int | None,
    ) -> Self:
        """A question about one image or several.

        Raises:
            InvalidInput: both a version and a label are given, or either without a model; a name is empty;
                there is no image; or something has the wrong type.
            OSError: a file cannot be read.
        """
        if version is not None and label is not None:
            raise InvalidInput("a version and a label are given; give one of them")
        if model is None and (version is not None or label is not None):
            raise InvalidInput("a version or a label needs a model")
        if "" in (model, label):
            raise InvalidInput(
                "the name of a model, or a label, is empty; None stands for what the gateway chooses"
            )
        version, top_k = _whole("version", version), _whole("top_k", top_k)
        # A str is a sequence of letters, and an open file yields lines: each must be refused as a whole.
        whole = isinstance(images, (*_OCTETS, str)) or hasattr(images, "read")
        several: Iterable[object] = images if isinstance(images, Iterable) and not whole else [images]
        octets = [_octets(each) for each in several]
        if not octets:
            raise InvalidInput("there is no image; give at least one")
        return cls(octets, model, version, label, top_k)


def _whole(name: str, given: object) -> int | None:
    """A whole number, or None; raises InvalidInput for what is neither."""
    if given is None:
        return None
    try:
        return operator.index(given)  # type: ignore[arg-type]  # which is what it finds out
    except TypeError:
        raise InvalidInput(f"{name} is {given!r:.100}; it is a whole number, or None") from None


def _octets(image: object) -> bytes:
    """An image's file; raises InvalidInput for what is no `Image`, such as a file's name as a str."""
    if isinstance(image, Path):
        return image.read_bytes()
    if isinstance(image, _OCTETS):
        return bytes(image)
    hint = ""
    if isinstance(image, str):
        hint = "; Path(...) reads a file"
    elif hasattr(image, "read"):
        hint = "; its read() gives bytes"
    elif hasattr(image, "__array_interface__"):  # of NumPy, of Pillow
        hint = '; encode the pixels first, as Pillow does by save(file, "PNG")'
    raise InvalidInput(f"an image is an encoded file, as bytes or a Path, not {type(image).__name__}{hint}")

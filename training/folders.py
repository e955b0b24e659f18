"""Images in a folder or a zip: one sub-folder per class, or `train/` and `test/` with such sub-folders.

The sub-folders' names become the labels, in sorted order. Files that cannot be decoded, that are in no
class's folder, or that are images of other kinds are counted, named and left out; so are empty folders.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from training import decoding
from training.arrays import HELD_OUT, ImageData, split_by_class
from training.errors import BadInput

_NAMED_FILES = 5  # how many of the files left out are named in a note
_TRAIN_FOLDERS = ("train", "training")
_TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")
_ENCRYPTED = 1  # a bit of a zip member's flags
_LARGEST_COMMON_SIDE = 224
_MIXED_SIDE = 64

Read = Callable[[str], bytes]
Members = list[tuple[str, str]]  # (file, label)
# images [N, H, W, C], classes [N], the files' checksums [N]
Decoded = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]
Splits = dict[str, Decoded]


@dataclass
class _Survey:
    """What the headers of the images say, and the files that are left out."""

    kinds: Counter[tuple[tuple[int, int], str]] = field(default_factory=Counter)
    colour: bool = False
    unreadable: list[str] = field(default_factory=list)
    stray: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)

    def size(self) -> tuple[int, int]:
        """Height and width that suit all the images."""
        sizes = {size for size, _ in self.kinds}
        if len(sizes) == 1:
            width, height = sizes.pop()
            if max(width, height) <= _LARGEST_COMMON_SIDE:
                return height, width
        return _MIXED_SIDE, _MIXED_SIDE


def image_folder(
    name: str, path: Path, size: tuple[int, int] | None = None, channels: int | None = None
) -> ImageData:
    """The images below `path`, all resized to one size.

    Args:
        name: of the data set.
        path: a folder or a `.zip`.
        size: height and width to resize to; None takes the images' own if they are all of one size of at
            most 224 pixels, and else 64x64.
        channels: 1 or 3; None takes 3 if any image has colour.
    """
    names, closed, read = _listing(path)
    names, closed = ([name for name in found if not _is_hidden(name)] for found in (names, closed))
    images = [name for name in names if name.lower().endswith(decoding.SUFFIXES)]
    splits, labels, stray = _classes(images, path)
    other = [name for name in names if name.lower().endswith(decoding.OTHER_SUFFIXES)]
    empty = [name for name in _empty(names) if name not in closed]
    survey = _Survey(unreadable=closed, stray=stray, other=other, empty=empty)
    splits = {split: _surveyed(members, read, survey) for split, members in splits.items()}
    shape = (*(size or survey.size()), channels or (3 if survey.colour else 1))
    arrays = {split: _decode(members, labels, read, shape, survey) for split, members in splits.items()}
    _refuse_small_classes(arrays, labels, path, survey.unreadable)
    if "test" not in arrays:
        arrays = _split(*arrays["train"])
    return ImageData(name, labels, *arrays["train"][:2], *arrays["test"][:2], _notes(survey, shape))


def _listing(path: Path) -> tuple[list[str], list[str], Read]:
    """All names, sorted, folders with a `/` appended; unreadable folders; and a reader of files."""
    if path.is_dir():
        return *_names(path), partial(_read, path)
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise BadInput(f"{path}: neither a folder nor a zip file ({error})") from error
    if any(member.flag_bits & _ENCRYPTED for member in archive.infolist()):
        raise BadInput(f"{path}: the zip file asks for a password; unpack it and name the folder")

    def read(member: str) -> bytes:
        try:
            return archive.read(member)
        except Exception as error:  # each way of compression has its own errors for damaged data
            raise decoding.Undecodable(str(error)) from error

    return sorted(archive.namelist()), [], read


def _read(path: Path, member: str) -> bytes:
    try:
        return (path / member).read_bytes()
    except OSError as error:  # a broken link, or one to itself; an unreadable file
        raise decoding.Undecodable(str(error)) from error


def _names(path: Path) -> tuple[list[str], list[str]]:
    """All names below, sorted, those of folders with a `/` appended; and the unreadable folders.

    A class's folder may be a link to one elsewhere.
    """
    found: list[str] = []
    closed: list[OSError] = []
    for folder, below, names in os.walk(path, onerror=closed.append, followlinks=True):
        here = Path(folder)
        real = here.resolve()
        # a link to a folder that contains it would lead around for ever
        below[:] = [name for name in below if not real.is_relative_to((here / name).resolve())]
        found += [f"{(here / name).relative_to(path).as_posix()}/" for name in below]
        files = [here / name for name in names]
        found += [file.relative_to(path).as_posix() for file in files if file.is_file() or not file.exists()]
    return sorted(found), [f"{Path(error.filename).relative_to(path).as_posix()}/" for error in closed]


def _empty(names: list[str]) -> list[str]:
    """The empty folders, such as that of a class whose images are still to come."""
    behind = [*names[1:], ""]  # in sorted order a folder's content comes right after it
    return [
        name
        for name, following in zip(names, behind, strict=False)
        if name.endswith("/") and not following.startswith(name)
    ]


def _is_hidden(file: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(file).parts)


def _classes(images: list[str], path: Path) -> tuple[dict[str, Members], tuple[str, ...], list[str]]:
    """(file, label) of each image by split, all labels sorted, and the images in no class's folder."""
    paths = [PurePosixPath(name) for name in images]
    common = _common([entry.parts[:-2] for entry in paths if len(entry.parts) > 1])
    if common and common[-1].lower() in (*_TRAIN_FOLDERS, *_TEST_FOLDERS):
        common = common[:-1]
    relative = [(str(entry), entry.parts[len(common) :]) for entry in paths]
    outer = {parts[0] for _, parts in relative if len(parts) > 2}
    split_of = _splits(outer, path) if any(name.lower() in _TRAIN_FOLDERS for name in outer) else None
    splits: dict[str, Members] = defaultdict(list)
    stray = []
    for file, parts in relative:
        if split_of is None and len(parts) > 1:
            splits["train"].append((file, parts[0]))
        elif split_of is not None and len(parts) > 2:
            splits[split_of[parts[0]]].append((file, parts[1]))
        else:
            stray.append(file)
    labels = tuple(sorted({label for members in splits.values() for _, label in members}))
    if len(labels) < 2:
        found = f"only the class {labels[0]!r}" if labels else "no images"
        raise BadInput(
            f"{path}: {found}; it must hold a sub-folder of images for each class, two at least"
            f" (images are {', '.join(decoding.SUFFIXES)})"
        )
    for label in labels:
        if not _is_text(label):
            raise BadInput(f"{path}: the name of the class {label!r} is not UTF-8; rename its folder")
    return dict(splits), labels, stray


def _is_text(name: str) -> bool:
    """Whether a name on the disk is UTF-8: bytes that are not become lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _common(folders: list[tuple[str, ...]]) -> tuple[str, ...]:
    """The leading folders that all of these share."""
    if not folders:
        return ()
    first, last = min(folders), max(folders)
    same = [left == right for left, right in zip(first, last, strict=False)]
    return first[: (*same, False).index(False)]


def _splits(folders: set[str], path: Path) -> dict[str, str]:
    """What the images in each of these are for: "train" or "test"."""
    unknown = sorted(name for name in folders if name.lower() not in (*_TRAIN_FOLDERS, *_TEST_FOLDERS))
    if unknown:
        raise BadInput(
            f"{path}: beside the folder of images to train on there is {unknown[0]!r};"
            f" the images to be held out are in {', '.join(_TEST_FOLDERS)}"
        )
    return {name: "train" if name.lower() in _TRAIN_FOLDERS else "test" for name in folders}


def _surveyed(members: Members, read: Read, survey: _Survey) -> Members:
    """The members whose headers can be read."""
    readable = []
    for file, label in members:
        try:
            size, mode = decoding.size_and_mode(read(file))
        except decoding.Undecodable:
            survey.unreadable.append(file)
            continue
        survey.kinds[size, mode] += 1
        survey.colour = survey.colour or mode not in decoding.GREY_MODES
        readable.append((file, label))
    return readable


def _decode(
    members: Members, labels: tuple[str, ...], read: Read, shape: tuple[int, int, int], survey: _Survey
) -> Decoded:
    """The members' images and classes; truncated ones are noted and left out."""
    numbers = {label: number for number, label in enumerate(labels)}
    images = np.empty((len(members), *shape), np.uint8)
    classes: list[int] = []
    checksums: list[int] = []
    for file, label in members:
        try:
            encoded = read(file)
            images[len(classes)] = decoding.to_array(decoding.open_image(encoded), *shape)
        except decoding.Undecodable:
            survey.unreadable.append(file)
        else:
            classes.append(numbers[label])
            checksums.append(zlib.crc32(encoded))
    return images[: len(classes)], np.array(classes, np.int64), np.array(checksums, np.int64)


def _split(images: NDArray[np.uint8], classes: NDArray[np.int64], checksums: NDArray[np.int64]) -> Splits:
    """Some of every class held out: those whose files have the lowest checksums.

    So when images are added, nearly all the others stay on the side where they were. With a new random draw,
    every third held-out image of a class that grew by a tenth would be one that earlier versions saw.
    """
    order = np.argsort(checksums, kind="stable")
    kept, held = (order[part] for part in split_by_class(classes[order], HELD_OUT, seed=None))
    return {
        "train": (images[kept], classes[kept], checksums[kept]),
        "test": (images[held], classes[held], checksums[held]),
    }


def _refuse_small_classes(
    arrays: Splits,
    labels: tuple[str, ...],
    path: Path,
    unreadable: list[str],
) -> None:
    needed = 1 if "test" in arrays else 2
    why = "one to learn from" + (" and one to be held out" if needed > 1 else "")
    counts = np.bincount(arrays["train"][1], minlength=len(labels))
    for label, count in zip(labels, counts, strict=True):
        if count < needed:
            left_out = f"; {len(unreadable)} files could not be read" if unreadable else ""
            raise BadInput(
                f"{path}: images of class {label!r}: {count}; it needs {needed} at least, {why}{left_out}"
            )
    if "test" in arrays and not len(arrays["test"][1]):
        raise BadInput(f"{path}: none of the images held out in it can be read")


def _notes(survey: _Survey, shape: tuple[int, int, int]) -> tuple[str, ...]:
    notes = []
    left_out = (
        ("images in no class's folder", survey.stray),
        ("unreadable files", survey.unreadable),
        ("images of other kinds", survey.other),
        ("empty folders", survey.empty),
    )
    for what, files in left_out:
        if files:
            more = " ..." if len(files) > _NAMED_FILES else ""
            # a file's name may be no text
            names = [os.fsencode(name).decode(errors="replace") for name in files[:_NAMED_FILES]]
            notes.append(f"{len(files)} {what} left out: {', '.join(names)}{more}")
    if len(survey.kinds) > 1:
        notes.append(f"{len(survey.kinds)} combinations of size and mode, all made {shape}")
    return tuple(notes)

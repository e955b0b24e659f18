"""Atomic publishing: version folders appear whole or not at all.

A version is written to `<model>/.publishing-<version>`, which `mkdir` gives to only one publisher, and which
no watcher takes for a version, since its name is not a number. A lock on that folder says that its publisher
is alive. When everything is written and checked the folder is synced to disk and renamed. What a dead
publisher left is removed by the next one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from training.errors import BadInput, PublishFailed

_PREFIX = ".publishing-"


def versions(model_folder: Path) -> list[int]:
    """The version numbers in a model's folder, lowest first; other names are not versions."""
    if not model_folder.is_dir():
        return []
    return sorted(
        int(entry.name) for entry in model_folder.iterdir() if entry.name.isdecimal() and entry.is_dir()
    )


def version_folder(path: Path) -> Path:
    """The version that a path means: itself, or the newest in a model's folder."""
    if (path / "saved_model.pb").is_file():
        return path
    found = versions(path)
    if found and (path / str(found[-1]) / "saved_model.pb").is_file():
        return path / str(found[-1])
    below = f"the newest version below it, {found[-1]}" if found else "a version folder below it"
    raise BadInput(f"{path}: no saved_model.pb in it, nor in {below}")


def publish(model_folder: Path, write: Callable[[Path, int], None]) -> tuple[Path, int]:
    """Publishes what `write(folder, version)` writes as the next free version; its folder and number.

    `write` is called again, with the next number, if somebody else puts that very version there meanwhile.
    Raises `PublishFailed`, with nothing left behind, if the disk is full or `write` fails.
    """
    if not model_folder.name or model_folder.name.startswith("."):
        raise BadInput(f"{model_folder.name!r} is not a valid name for a model")
    try:
        with _made(model_folder):
            remove_leftovers(model_folder)
            while True:
                with _claimed(model_folder) as (folder, version):
                    write(folder, version)
                    _sync(folder)
                    target = model_folder / str(version)
                    if _rename(folder, target):
                        return target, version
    except OSError as error:
        raise PublishFailed(f"nothing was published in {model_folder}: {error.strerror or error}") from error


@contextmanager
def _made(model_folder: Path) -> Iterator[None]:
    """Create the folder; if the block fails, remove whatever was created, parents included, if empty."""
    missing = [each for each in (model_folder, *model_folder.parents) if not each.exists()]
    try:
        model_folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):
            for folder in missing:
                folder.rmdir()
        raise


@contextmanager
def _claimed(model_folder: Path) -> Iterator[tuple[Path, int]]:
    """A folder of this publisher's own, locked, for the next version; removed unless it was renamed."""
    version = max(versions(model_folder), default=0) + 1
    while True:
        folder = model_folder / f"{_PREFIX}{version}"
        lock = _make_locked(folder)
        if lock is not None and not (model_folder / str(version)).exists():
            break
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
        version += 1
    try:
        yield folder, version
    finally:
        if is_at(lock, folder):
            shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _make_locked(folder: Path) -> int | None:
    """Makes the folder and locks it: the lock, or None if another publisher has the folder."""
    try:
        folder.mkdir(parents=True)  # its parent is gone if another publisher's first version just failed
    except FileExistsError:
        return None
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:  # another publisher took it for a leftover, before it was locked
        return None
    with suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_at(lock, folder):
            return lock
    os.close(lock)
    return None


def is_at(lock: int, path: Path) -> bool:
    """Whether the locked file or folder is still the one at this path."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(lock))


def remove_leftovers(model_folder: Path) -> list[Path]:
    """Removes what dead publishers left; a folder that is locked belongs to one alive."""
    removed = []
    for folder in model_folder.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
                removed.append(folder)
            finally:
                os.close(lock)
    return removed


def _rename(folder: Path, target: Path) -> bool:
    """Renames unless the target is there: false then. The parent's entry is synced to the disk."""
    if target.exists():
        return False
    try:
        folder.rename(target)
    except OSError:
        if target.exists():
            return False
        raise
    _sync_one(target.parent)
    return True


def _sync(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            _sync_one(Path(root, name))
        _sync_one(Path(root))


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

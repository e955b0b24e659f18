"""The folder of a running installation, for its sockets and its model server's config.

A process that is killed leaves its folder behind, so whoever starts next in the same place clears it away. A
lock, shared by the owner of a folder and its children, tells which folders are still in use: the kernel
releases it however a holder ends.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from serving.errors import FailedPrecondition

_PREFIX = "sluice-"  # short, since the path of a unix socket is
_LOCK = "owner.lock"


@contextmanager
def work_folder() -> Iterator[Path]:
    """A new folder that only this user may enter; removed at the end of the block.

    Raises:
        OSError: there is no room for one, or no place where one may be made.
    """
    _clear_away(Path(tempfile.gettempdir()))
    folder, lock = _locked_folder()
    with lock:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def kept(*folders: Path) -> Iterator[None]:
    """Keep another process's folders from being cleared away while the block runs, even if that one dies.

    Raises:
        FailedPrecondition: one of them is gone already.
    """
    with ExitStack() as locks:
        for folder in folders:
            with suppress(FileNotFoundError):
                fcntl.flock(locks.enter_context((folder / _LOCK).open()), fcntl.LOCK_SH)
            if not (folder / _LOCK).exists():
                raise FailedPrecondition(f"the work folder {folder} has been removed")
        yield


def _locked_folder() -> tuple[Path, IO[str]]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = (folder / _LOCK).open("w")
        fcntl.flock(lock, fcntl.LOCK_SH)
        if (folder / _LOCK).exists():
            return folder, lock
        lock.close()  # between the two lines above another process took it for a leftover


def _clear_away(parent: Path) -> None:
    """Remove this user's folders that nobody holds; those without a lock are not of this program."""
    for path in parent.glob(f"{_PREFIX}*/{_LOCK}"):
        with suppress(OSError):
            if path.parent.lstat().st_uid != os.geteuid():
                continue
            with path.open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path.parent, ignore_errors=True)

"""Who decides: one of the gateways that share a store."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from serving.rollout.counts import Counts

# A gateway that has not written for this long is gone; its file is removed.
_GONE_S = 3600.0


class Leadership(Protocol):
    """Elects one of several gateways."""

    def held(self) -> bool:
        """Whether this gateway decides now; tries to become the one if there is none."""

    def release(self) -> None:
        """Lets another one decide."""


class FolderLeadership:
    """The gateway that holds a lock on a file decides. The system frees the lock when its process ends."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(folder / ".leader.lock", os.O_RDWR | os.O_CREAT, 0o600)
        self._held = False

    def held(self) -> bool:
        """See `Leadership.held`."""
        if not self._held:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._held = True
        return self._held

    def release(self) -> None:
        """See `Leadership.release`."""
        os.close(self._descriptor)


class CountSource(Protocol):
    """Brings the counts of all gateways together."""

    def publish(self, counts: dict[str, Counts]) -> None:
        """Publishes what this gateway has counted so far, by model."""

    def collect(self, model: str) -> dict[str, Counts]:
        """What each gateway has counted so far of a model, by the gateway's id.

        Raises:
            Unavailable: It cannot be known at the moment.
        """


class FolderCounts:
    """Each gateway writes its counts to a file of its own in a shared folder.

    Args:
        folder: The folder.
        identity: This gateway's id: its file's name.
        wall: The time of day, in seconds.
    """

    def __init__(self, folder: Path, identity: str, wall: Callable[[], float] = time.time) -> None:
        self._folder = folder / "counts"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path = self._folder / f"{identity}.json"
        self._own: dict[str, Counts] = {}
        self._wall = wall

    def publish(self, counts: dict[str, Counts]) -> None:
        """See `CountSource.publish`."""
        if counts == self._own and self._path.exists():
            return
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(counts))
        temporary.replace(self._path)
        self._own = counts

    def collect(self, model: str) -> dict[str, Counts]:
        """See `CountSource.collect`."""
        found = {}
        for path in self._folder.glob("*.json"):
            with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
                # A file from the future was written before the clock was set back: live gateways rewrite it.
                if abs(self._wall() - path.stat().st_mtime) > _GONE_S:
                    path.unlink()
                    continue
                counts = json.loads(path.read_text()).get(model, {})
                found[path.stem] = {str(name): float(number) for name, number in counts.items()}
        return found

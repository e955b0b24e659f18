"""What is remembered for feedback: the ids that were redeemed, and how candidates answered copies.

Feedback on a prediction counts once, whichever gateway it comes to. If the request was copied to the
candidate, the true label judges both answers; the id was given out before the candidate had answered, so its
answer is kept here under the copy's name.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from serving.errors import Unavailable

_log = structlog.get_logger()

# In one process; the oldest are forgotten first.
_MOST = 100_000
_LOCK_TIMEOUT_S = 5.0
_CLEAN_EVERY_S = 3600.0

_TABLES = (
    "CREATE TABLE IF NOT EXISTS taken (id BLOB PRIMARY KEY, at REAL)",
    "CREATE TABLE IF NOT EXISTS copies (copy TEXT PRIMARY KEY, version INTEGER, labels TEXT, at REAL)",
)
_FORGET = ("DELETE FROM taken WHERE at < ?", "DELETE FROM copies WHERE at < ?")


@dataclass(frozen=True, slots=True)
class Named:
    """The labels that a candidate gave the images of one copied request, in their order."""

    version: int
    labels: tuple[str, ...]


class Memory(Protocol):
    """Remembers. Safe to use from several threads; all but `note` may wait for a disk.

    Attributes:
        failures: How often the store could not be read or written.
    """

    failures: int

    def take(self, ids: Sequence[bytes]) -> list[bool]:
        """Takes these ids; returns, for each, whether it was new.

        Raises:
            Unavailable: It cannot be known at the moment, and nothing was taken.
        """

    def note(self, copy: str, named: Named) -> None:
        """Remembers the labels that the candidate gave a copy."""

    def named(self, copy: str) -> Named | None:
        """The labels that the candidate gave a copy; None if it has not answered, or that is not known here.

        Raises:
            Unavailable: It cannot be known at the moment.
        """

    def share(self) -> None:
        """Shares with other gateways what was noted since the last time; called once in a while."""


class OwnMemory:
    """The memory of one process.

    Where gateways share no disk (a cluster), a repeated message counts once at each gateway that it reaches,
    and both answers are judged only by the gateway that made the copy.
    """

    def __init__(self) -> None:
        self.failures = 0
        self._lock = threading.Lock()
        self._taken: OrderedDict[bytes, None] = OrderedDict()
        self._named: OrderedDict[str, Named] = OrderedDict()

    def take(self, ids: Sequence[bytes]) -> list[bool]:
        """See `Memory.take`."""
        with self._lock:
            return [self._take(each) for each in ids]

    def _take(self, id_: bytes) -> bool:
        if id_ in self._taken:
            return False
        self._taken[id_] = None
        if len(self._taken) > _MOST:
            self._taken.popitem(last=False)
        return True

    def note(self, copy: str, named: Named) -> None:
        """See `Memory.note`."""
        with self._lock:
            self._named[copy] = named
            if len(self._named) > _MOST:
                self._named.popitem(last=False)

    def named(self, copy: str) -> Named | None:
        """See `Memory.named`."""
        with self._lock:
            return self._named.get(copy)

    def share(self) -> None:
        """See `Memory.share`: there is nobody to tell."""


class FolderMemory(OwnMemory):
    """The memory that gateways share in a folder, in a database file (SQLite).

    If the file is damaged the log says so, and feedback is refused until it is removed: rollouts go on.

    Args:
        folder: Made if it is not there.
        ttl_s: How long ids and copies are remembered: as long as feedback is taken.
        wall: The time of day, in Unix seconds.
        clock: The monotonic clock, in seconds.
    """

    def __init__(
        self,
        folder: Path,
        ttl_s: float,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "feedback.sqlite"
        self._ttl_s = ttl_s
        self._wall = wall
        self._clock = clock
        self._unshared: dict[str, Named] = {}
        self._fails = False
        self._cleaned_at = float("-inf")

    def take(self, ids: Sequence[bytes]) -> list[bool]:
        """See `Memory.take`. One transaction: it counts before this returns, or never."""
        at = self._wall()
        with self._database() as database:
            return [
                database.execute("INSERT OR IGNORE INTO taken VALUES (?, ?)", (each, at)).rowcount == 1
                for each in ids
            ]

    def note(self, copy: str, named: Named) -> None:
        """See `Memory.note`."""
        super().note(copy, named)
        with self._lock:
            # Nothing is shared while looks fail, as on a full disk.
            if len(self._unshared) < _MOST:
                self._unshared[copy] = named

    def named(self, copy: str) -> Named | None:
        """See `Memory.named`."""
        own = super().named(copy)
        if own is not None:
            return own
        with self._database() as database:
            row = database.execute("SELECT version, labels FROM copies WHERE copy = ?", (copy,)).fetchone()
        return None if row is None else Named(int(row[0]), tuple(json.loads(row[1])))

    def share(self) -> None:
        """See `Memory.share`. What cannot be shared now is shared later."""
        with self._lock:
            unshared, self._unshared = self._unshared, {}
        if not unshared:
            return
        at = self._wall()
        rows = [(copy, each.version, json.dumps(each.labels), at) for copy, each in unshared.items()]
        try:
            with self._database() as database:
                database.executemany("INSERT OR REPLACE INTO copies VALUES (?, ?, ?, ?)", rows)
        except Unavailable as error:
            with self._lock:
                self._unshared = dict(itertools.islice((unshared | self._unshared).items(), _MOST))
            if not self._fails:
                text = "candidates' answers to copies cannot be shared with other gateways yet"
                _log.warning(text, error=error.message)
            self._fails = True
        else:
            self._fails = False

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """The database in a transaction of its own."""
        try:
            with (
                contextlib.closing(sqlite3.connect(self._path, timeout=_LOCK_TIMEOUT_S)) as database,
                database,
            ):
                # The lock is taken before anything is read: two gateways must not both find an id new.
                database.execute("BEGIN IMMEDIATE")
                self._prepare(database)
                yield database
        except sqlite3.Error as error:
            with self._lock:
                self.failures += 1
            raise Unavailable(f"the store of feedback cannot be read or written: {error}") from error

    def _prepare(self, database: sqlite3.Connection) -> None:
        """Makes the tables if there are none, and now and then forgets what is old."""
        for statement in _TABLES:
            database.execute(statement)
        now = self._clock()
        if now - self._cleaned_at < _CLEAN_EVERY_S:
            return
        for statement in _FORGET:
            database.execute(statement, (self._wall() - self._ttl_s,))
        self._cleaned_at = now

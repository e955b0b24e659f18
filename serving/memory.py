"""How much memory there is, and how the process gives back what it has used.

A gateway that takes more memory than its container may have is killed, with all its requests in flight. So
the bytes of bodies that it holds at once are kept to a part of what such a limit leaves at the start, and
what is left is watched while requests come (`serving.pressure`).

Memory is given back by glibc's malloc, tuned (mallopt(3)) for images and tensors that come and go.

By default glibc keeps an arena for each thread, and raises its thresholds with the largest block it has seen.
Here there are few arenas, and the thresholds are fixed: large enough that what one request frees serves the
next. If it were mapped and unmapped each time, page by page, as with glibc's initial thresholds of 128 KiB, a
call with a tensor of 600 kB would take 4.3 core-ms instead of 1.3, and a photograph of 1 MB 14.0 instead of
12.1. What lies free in between goes back by `malloc_trim` every so often.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import resource
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import structlog

from serving.errors import InvalidInput

_log = structlog.get_logger()

# Control groups (cgroups(7)): version 2, and version 1, whose file has a number beyond any memory for "none".
_CGROUP_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
# A body is held once, and for a moment twice, while it is joined; the rest is for decoded images.
_PART = 1 / 3
# For files and name servers, off the event loop: these threads wait, and need no cores.
_THREADS = 6
# Version 1's way to say that there is none.
_NO_LIMIT_BYTES = 2**50
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_STATM = Path("/proc/self/statm")
_BESIDE_S = 1.0
# Trimming takes milliseconds: not more often, even when memory is short.
_BETWEEN_TRIMS_S = 0.2
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
# A batch of 32 images of 224×224 pixels is 4.8 MB; larger blocks are mapped, and gone once they are free.
MMAP_THRESHOLD_BYTES = 8 * 2**20
# The most that may lie free at an arena's end until the next trim: several copies of such a batch.
TRIM_THRESHOLD_BYTES = 32 * 2**20
ARENAS = 2


class Bound(NamedTuple):
    """A limit on this process's memory, and how much of it is used."""

    limit_bytes: int
    used_bytes: int

    @property
    def left_bytes(self) -> int:
        """What the process may still take."""
        return max(self.limit_bytes - self.used_bytes, 0)


class Usage:
    """How much this process uses of its limits: its control group's, its address space's, a setting's.

    Reading it takes about 10 µs: what the control group holds besides this process (other workers, the
    kernel's buffers) is read only once a second.

    Args:
        max_bytes: how much it may have resident; None: as much as the others allow.
        cgroup_files: where a control group's limit is.
        clock: the monotonic clock, in seconds.

    Raises:
        InvalidInput: the process has more than `max_bytes` already.
    """

    def __init__(
        self,
        max_bytes: int | None = None,
        cgroup_files: Sequence[str] = _CGROUP_FILES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._groups = [
            (limit_bytes, Path(name).parent)
            for name in cgroup_files
            if (limit_bytes := _number(Path(name))) is not None and limit_bytes < _NO_LIMIT_BYTES
        ]
        self._beside_bytes = [0] * len(self._groups)
        self._asked = float("-inf")
        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        self._space_bytes = None if soft == resource.RLIM_INFINITY else soft
        resident_bytes = int(_STATM.read_bytes().split()[1]) * _PAGE_BYTES
        if max_bytes is not None and resident_bytes >= max_bytes:
            raise InvalidInput(
                f"max_memory_bytes is {max_bytes:,}, and the gateway by itself takes {resident_bytes:,}; "
                "give it a few hundred million more than that"
            )

    @property
    def limited(self) -> bool:
        """Whether there is any limit."""
        return bool(self._groups) or self._space_bytes is not None or self._max_bytes is not None

    def bounds(self) -> list[Bound]:
        """Each limit, and what is used of it."""
        pages = _STATM.read_bytes().split()
        mapped_bytes, resident_bytes = int(pages[0]) * _PAGE_BYTES, int(pages[1]) * _PAGE_BYTES
        found = []
        if self._groups:
            self._ask(resident_bytes)
            for (limit_bytes, _), beside_bytes in zip(self._groups, self._beside_bytes, strict=True):
                found.append(Bound(limit_bytes, resident_bytes + beside_bytes))
        if self._space_bytes is not None:
            found.append(Bound(self._space_bytes, mapped_bytes))
        if self._max_bytes is not None:
            found.append(Bound(self._max_bytes, resident_bytes))
        return found

    def left(self) -> int:
        """What may still be taken under the limit that leaves the least; there must be a limit."""
        return min(each.left_bytes for each in self.bounds())

    def _ask(self, resident_bytes: int) -> None:
        now = self._clock()
        if now - self._asked >= _BESIDE_S:
            self._asked = now
            self._beside_bytes = [
                max(0, held_by_group(folder) - resident_bytes) for _, folder in self._groups
            ]


def held_by_group(folder: Path) -> int:
    """What a control group holds and cannot reclaim: all but files' pages. 0 if it does not say."""
    try:
        pairs = [line.split() for line in (folder / "memory.stat").read_text().splitlines()]
    except OSError:
        return 0
    names = dict(pair for pair in pairs if len(pair) == 2)
    # In version 1 the names without `total_` leave out the groups below.
    kinds = ("total_inactive_file", "total_active_file")
    if kinds[0] not in names:
        kinds = ("inactive_file", "active_file")
    used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
    return max(0, used - sum(int(names.get(kind, 0)) for kind in kinds))


def _number(path: Path) -> int | None:
    """The number in a file; None if there is no such file, or it says "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def fitting(wanted_bytes: int, limits: Sequence[Bound]) -> int:
    """How many bytes of bodies may be held: what is wanted, or less, where memory is limited to less."""
    left_bytes = min((each.left_bytes for each in limits), default=None)
    if left_bytes is None or wanted_bytes <= left_bytes * _PART:
        return wanted_bytes
    fits_bytes = int(left_bytes * _PART)
    _log.warning(
        "bodies in flight are kept to a third of the memory that is left",
        max_in_flight_bytes=fits_bytes,
        instead_of=wanted_bytes,
    )
    return fits_bytes


def start_threads() -> None:
    """Start all the threads that the running event loop hands work to, now.

    Otherwise they start one by one as they are needed: if memory has run short by then, there is none for a
    thread's stack, and whatever wanted to read a file fails.
    """
    executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="beside")
    all_started = threading.Barrier(_THREADS)
    for _ in range(_THREADS):
        executor.submit(all_started.wait)
    asyncio.get_running_loop().set_default_executor(executor)


def give_back_memory() -> bool:
    """Set all of it, before the first thread starts; False where the C library cannot."""
    return (
        share_arenas()
        and _mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
        and _mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
    )


def share_arenas() -> bool:
    """Have all threads share malloc's few arenas, before the first of them starts; False where the C library
    cannot. Each arena keeps what its threads have used at most.
    """
    return _mallopt(_M_ARENA_MAX, ARENAS)


def _mallopt(parameter: int, value: int) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(parameter, value))


def trim() -> bool:
    """Give free pages back, which takes milliseconds; False where the C library cannot."""
    try:
        malloc_trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return False
    malloc_trim(0)
    return True


async def trim_steadily(short: asyncio.Event, interval_s: float = 10.0) -> None:
    """Give free pages back every so often, and when memory is `short`, for ever; off the event loop."""
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(interval_s):
                await short.wait()
        short.clear()
        if not await asyncio.to_thread(trim):
            return
        await asyncio.sleep(_BETWEEN_TRIMS_S)

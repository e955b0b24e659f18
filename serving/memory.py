"""How much memory there is for bodies, and how the process gives back what it has used.

A gateway in a container is killed if it takes more than the container may have, with all that it was asked.
So the bytes of bodies that it holds at once are kept to a part of what is left of such a limit at the start.

Memory is given back by glibc's malloc, told that images come and go.

By default glibc keeps an arena for each thread and raises its thresholds with the largest block it has seen,
so that a few large images leave the process large for good: 10,000 damaged images grew it from 115 to 125 MB;
with these two settings it stays at 100 MB (mallopt(3)). What an overload leaves between blocks that are still
in use goes back by `malloc_trim` only: after ten times too many requests that is 222 MB down to 135.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import structlog

_log = structlog.get_logger()

# Control groups (cgroups(7)): version 2, and version 1, whose file says a number beyond any memory for none.
_CGROUP_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
# A body is held once, and twice for a moment as it is put together; the other part is for decoded images.
_PART = 1 / 3
# For files and name servers, beside the event loop: they wait, and need no cores.
_THREADS = 6
_M_TRIM_THRESHOLD = -1
_M_ARENA_MAX = -8
# glibc's own first value; setting it keeps it from growing.
TRIM_THRESHOLD_BYTES = 128 * 2**10
ARENAS = 2


class Bound(NamedTuple):
    """A limit on this process's memory, and how much of it is used."""

    limit_bytes: int
    used_bytes: int

    @property
    def left_bytes(self) -> int:
        """What the process may still take."""
        return max(self.limit_bytes - self.used_bytes, 0)


def bounds(cgroup_files: Sequence[str] = _CGROUP_FILES) -> list[Bound]:
    """The limits that hold for this process: its control group's, and of its address space (RLIMIT_AS)."""
    mapped_bytes, resident_bytes = (
        int(pages) * os.sysconf("SC_PAGE_SIZE") for pages in Path("/proc/self/statm").read_text().split()[:2]
    )
    found = []
    for name in cgroup_files:
        try:
            found.append(Bound(int(Path(name).read_text()), resident_bytes))
        except (OSError, ValueError):  # there is none, or it says "max"
            continue
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        found.append(Bound(soft, mapped_bytes))
    return found


def fitting(wanted_bytes: int, limits: Sequence[Bound] | None = None) -> int:
    """How many bytes of bodies may be held: what is wanted, or less, where memory is limited to less."""
    left_bytes = min((each.left_bytes for each in (bounds() if limits is None else limits)), default=None)
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
    """Start the threads that the running event loop hands work to, all of them, now.

    Else they are started one by one as they are needed: where memory has run short meanwhile a thread finds
    none for its stack, and whatever wanted to read a file fails.
    """
    executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="beside")
    all_started = threading.Barrier(_THREADS)
    for _ in range(_THREADS):
        executor.submit(all_started.wait)
    asyncio.get_running_loop().set_default_executor(executor)


def give_back_memory() -> bool:
    """Set both, before the first thread starts; False where the C library cannot."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_ARENA_MAX, ARENAS)) and bool(mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES))


async def trim_steadily(interval_s: float = 10.0) -> None:
    """Give free pages back every so often, for ever; beside the event loop, since it takes milliseconds."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return
    while True:
        await asyncio.sleep(interval_s)
        await asyncio.to_thread(trim, 0)

"""How the process gives memory back: glibc's malloc, told that images come and go.

By default glibc keeps an arena for each thread and raises its thresholds with the largest block it has seen,
so that a few large images leave the process large for good: 10,000 damaged images grew it from 115 to 125 MB;
with these two settings it stays at 100 MB (mallopt(3)). What an overload leaves between blocks that are still
in use goes back by `malloc_trim` only: after ten times too many requests that is 222 MB down to 135.
"""

from __future__ import annotations

import asyncio
import ctypes

_M_TRIM_THRESHOLD = -1
_M_ARENA_MAX = -8
# glibc's own first value; setting it keeps it from growing.
TRIM_THRESHOLD_BYTES = 128 * 2**10
ARENAS = 2


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

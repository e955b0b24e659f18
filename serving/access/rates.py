"""How many requests a caller may make in a window of time.

Times are on the monotonic clock and given by the caller: setting the wall clock, forward or back, neither
locks a caller out nor gives it a second allowance.
"""

from __future__ import annotations


class SlidingWindow:
    """At most so many in any window, by a sliding window counter.

    Two counts are kept, of the current window and of the one before, and the latter counts for the part of it
    that a window ending now would still cover. It is the approximation of the `limits` package's
    SlidingWindowCounterRateLimiter, whose storage is tied to the time of day.

    Args:
        amount: how many.
        window_s: the window's length.
    """

    __slots__ = ("_amount", "_before", "_current", "_index", "_window_s")

    def __init__(self, amount: int, window_s: float) -> None:
        self._amount = amount
        self._window_s = window_s
        self._index = 0
        self._before = 0
        self._current = 0

    def take(self, now: float) -> float:
        """Count one more if that is allowed, and return 0; if not, the seconds until one is."""
        index, into_s = divmod(now, self._window_s)
        if index != self._index:
            self._before = self._current if index == self._index + 1 else 0
            self._current, self._index = 0, int(index)
        left = self._amount - self._current
        if left <= 0:
            return self._window_s - into_s
        wait_s = self._window_s * (1.0 - left / self._before) - into_s if self._before else -1.0
        if wait_s < 0.0:
            self._current += 1
            return 0.0
        return max(wait_s, 1e-3)

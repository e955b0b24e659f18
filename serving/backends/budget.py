"""A retry budget: retries stay few enough that a sick fleet is not flooded with them.

After Finagle's RetryBudget: each call earns a share of a retry, each retry costs a whole one, and a small
reserve refills with time, so that a rare call may be retried, too.
"""

from __future__ import annotations

SHARE = 0.2
RESERVE_PER_S = 10.0
MOST = 100.0


class RetryBudget:
    """A balance of retries. Times are on the monotonic clock and given by the caller."""

    def __init__(self) -> None:
        self._balance = RESERVE_PER_S
        self._refilled_at: float | None = None

    def earn(self) -> None:
        """A call is made for the first time."""
        self._balance = min(MOST, self._balance + SHARE)

    def spend(self, now: float) -> bool:
        """Whether a retry may be made; if so, pay for it."""
        if self._refilled_at is not None:
            refill = RESERVE_PER_S * (now - self._refilled_at)
            self._balance = min(MOST, max(self._balance, min(RESERVE_PER_S, self._balance + refill)))
        self._refilled_at = now
        if self._balance < 1.0:
            return False
        self._balance -= 1.0
        return True

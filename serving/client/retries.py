"""When a request is worth sending again: pure."""

from __future__ import annotations

from dataclasses import dataclass

from serving.errors import SluiceError


@dataclass(frozen=True, slots=True)
class Retries:
    """How often, and after which pauses, a request is sent again.

    Args:
        attempts: how often a request is sent at most, the first time included.
        first_pause_s: the pause after the first failure, where the gateway names none; it doubles each time.
        longest_pause_s: no pause is longer; if the gateway asks for a longer one, the failure is final.
    """

    attempts: int = 4
    first_pause_s: float = 0.2
    longest_pause_s: float = 10.0

    def pause_s(self, error: SluiceError, attempt: int, left_s: float) -> float | None:
        """How long to wait before sending again; None if the failure is final.

        Args:
            error: what the attempt failed with.
            attempt: which attempt that was, from 1.
            left_s: seconds until the caller's deadline.
        """
        if not error.retryable or attempt >= self.attempts:
            return None
        backoff_s = min(self.first_pause_s * 2 ** (attempt - 1), self.longest_pause_s)
        pause_s = backoff_s if error.retry_after_s is None else error.retry_after_s
        return pause_s if pause_s <= self.longest_pause_s and pause_s < left_s else None

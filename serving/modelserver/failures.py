"""What is logged about a load that keeps failing: each error once, then now and then how often it came."""

from __future__ import annotations

REPEAT_INTERVAL_S = 60.0


class Failures:
    """The failed attempts to load one version, so far.

    Attributes:
        tries: how many there were.
    """

    def __init__(self) -> None:
        self.tries = 0
        self._error = ""
        self._told_at = 0.0
        self._untold = 0

    def tell(self, error: str, now: float) -> str | None:
        """What to log about one more failure; None: nothing, since the same was logged a moment ago.

        Args:
            error: what went wrong.
            now: seconds of a monotonic clock.
        """
        self.tries += 1
        if error == self._error:
            self._untold += 1
            if now - self._told_at < REPEAT_INTERVAL_S:
                return None
        else:
            self._error, self._untold = error, 0
        more = f"{self._untold} more time{'s' if self._untold > 1 else ''}"
        text = f"{error} ({more})" if self._untold else error
        self._told_at, self._untold = now, 0
        return text

"""Answers that wait for their clients to read them: bounded together, in bytes.

Admission counts a request until its answer is made. From then on a client that does not read keeps the answer
in memory: 18 MB for 256 images and 1,000 classes.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

_log = structlog.get_logger()


class Unread:
    """What clients have yet to read. Beyond the limit, those are cut off that have read nothing for longest.

    One answer may wait in any case, however large.

    Args:
        max_bytes: the limit for all of them.

    Attributes:
        held_bytes: how much waits at the moment.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._waiting: dict[Callable[[], None], int] = {}
        self.held_bytes = 0

    def wait(self, cut_off: Callable[[], None], size_bytes: int) -> None:
        """A client reads more slowly than it is written to.

        Args:
            cut_off: ends its connection; it also tells clients apart.
            size_bytes: how much memory its answer takes.
        """
        self.end(cut_off)
        self._waiting[cut_off] = size_bytes
        self.held_bytes += size_bytes
        while self.held_bytes > self._max_bytes and len(self._waiting) > 1:
            longest = next(iter(self._waiting))
            _log.warning(
                "a client was cut off that did not read its answer: too many bytes of answers wait",
                answer_bytes=self._waiting[longest],
                held_bytes=self.held_bytes,
                max_in_flight_bytes=self._max_bytes,
            )
            self.end(longest)
            longest()

    def end(self, cut_off: Callable[[], None]) -> None:
        """It has read, or is gone."""
        self.held_bytes -= self._waiting.pop(cut_off, 0)

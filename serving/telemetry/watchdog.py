"""Notices when the event loop is blocked, and says what it was doing.

A gateway answers everybody on one loop: code that computes or blocks on it stops every request at once, and a
profile taken later does not show it. A task keeps noting the time; a thread checks that it still does.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog

_log = structlog.get_logger()

# What a person notices, and far beyond what decoding or a batch's bookkeeping takes.
THRESHOLD_S = 0.5
INTERVAL_S = 0.1

Stalled = Callable[[float], None]
"""Called on the loop after each stall, with its length in seconds."""


class Watchdog:
    """Watches the running loop.

    Args:
        stalled: called after each stall.
        threshold_s: what counts as one.
        interval_s: how often the loop notes the time.
        clock: the monotonic clock, in seconds.
    """

    def __init__(
        self,
        stalled: Stalled,
        *,
        threshold_s: float = THRESHOLD_S,
        interval_s: float = INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stalled = stalled
        self._threshold_s = threshold_s
        self._interval_s = interval_s
        self._clock = clock
        self._beat = clock()
        self._end = threading.Event()

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watch while the block runs."""
        loop_thread = threading.get_ident()
        thread = threading.Thread(target=self._watch, args=(loop_thread,), name="watchdog", daemon=True)
        beating = asyncio.create_task(self._beat_steadily())
        self._beat = self._clock()
        thread.start()
        try:
            yield
        finally:
            beating.cancel()
            self._end.set()

    async def _beat_steadily(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            before, self._beat = self._beat, self._clock()
            late_s = self._beat - before - self._interval_s
            if late_s > self._threshold_s:
                _log.warning("the event loop was blocked", for_s=round(late_s, 3))
                self._stalled(late_s)

    def _watch(self, loop_thread: int) -> None:
        """Log once in each stall where the loop is. If this thread itself was late, the whole process was."""
        told, woken = self._beat, self._clock()
        while not self._end.wait(self._interval_s):
            before, woken, beat = woken, self._clock(), self._beat
            slept_well = woken - before < self._interval_s + self._threshold_s / 2
            if slept_well and beat != told and woken - beat - self._interval_s > self._threshold_s:
                told = beat
                frame = sys._current_frames().get(loop_thread)
                stack = "".join(traceback.format_stack(frame)[-12:])
                _log.warning("the event loop is blocked here", stack=stack)

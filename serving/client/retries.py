"""When to retry a request: pure, but for the two loops at the end that wait in between."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from serving.durations import LONGEST_S
from serving.errors import InvalidInput, SluiceError

Answer = TypeVar("Answer")

# Even after the deadline the first attempt gets a moment, so that it fails with a proper error.
_LEAST_S = 0.001
# More would overflow, and nobody waits for such a pause.
_MOST_DOUBLINGS = 60
# Jitter: pauses are up to this many times as long, so that clients refused together do not return together.
_SPREAD = 1.5


@dataclass(frozen=True, slots=True)
class Retries:
    """How often, and after which pauses, a request is sent again.

    Args:
        attempts: how often a request is sent at most, the first time included.
        first_pause_s: the pause after the first failure, if the gateway names none; it doubles each time.
            Pauses are lengthened at random, by half at most.
        longest_pause_s: the longest pause before it is lengthened; if the gateway asks for a longer one, the
            failure is final.

    Raises:
        InvalidInput: fewer than one attempt, or a pause below 0.
    """

    attempts: int = 4
    first_pause_s: float = 0.2
    longest_pause_s: float = 10.0

    def __post_init__(self) -> None:
        if not (self.attempts >= 1 and self.first_pause_s >= 0 and self.longest_pause_s >= 0):
            raise InvalidInput(f"{self} is not valid: attempts must be at least 1, and no pause below 0")

    def pause_s(self, error: SluiceError, attempt: int, left_s: float) -> float | None:
        """How long to wait before sending again; None if the failure is final.

        Args:
            error: what the attempt failed with.
            attempt: which attempt that was, from 1.
            left_s: seconds until the caller's deadline.
        """
        if not error.retryable or attempt >= self.attempts:
            return None
        doublings = min(attempt - 1, _MOST_DOUBLINGS)
        backoff_s = min(self.first_pause_s * 2**doublings, self.longest_pause_s)
        # A proxy may have sent any number, even a negative one.
        pause_s = backoff_s if error.retry_after_s is None else max(error.retry_after_s, 0.0)
        return pause_s if pause_s <= self.longest_pause_s and pause_s < left_s else None


class _Attempts:
    """The attempts at one request: how long each may take, and what follows its failure."""

    def __init__(self, retries: Retries, timeout_s: float) -> None:
        if not timeout_s <= LONGEST_S:
            raise InvalidInput(
                f"timeout_s is {timeout_s}; it is a number of seconds, a year ({LONGEST_S:.0f}) at most"
            )
        self._retries = retries
        self._deadline = time.monotonic() + timeout_s
        self._made = 0

    def next_s(self) -> float:
        """Begin an attempt; returns how many seconds it may take."""
        self._made += 1
        return max(self._deadline - time.monotonic(), _LEAST_S)

    def pause_s(self, error: SluiceError) -> float | None:
        """How long to wait before the next one; None if there is none."""
        spread = random.uniform(1.0, _SPREAD)
        pause_s = self._retries.pause_s(error, self._made, (self._deadline - time.monotonic()) / spread)
        return None if pause_s is None else pause_s * spread


def repeated(retries: Retries, timeout_s: float, send: Callable[[float], Answer]) -> Answer:
    """What `send` returns, given the seconds that it may take; it is sent again while that may help."""
    attempts = _Attempts(retries, timeout_s)
    while True:
        try:
            return send(attempts.next_s())
        except SluiceError as error:
            pause_s = attempts.pause_s(error)
            if pause_s is None:
                raise
        time.sleep(pause_s)


async def repeated_async(
    retries: Retries, timeout_s: float, send: Callable[[float], Awaitable[Answer]]
) -> Answer:
    """The same for asyncio."""
    attempts = _Attempts(retries, timeout_s)
    while True:
        try:
            return await send(attempts.next_s())
        except SluiceError as error:
            pause_s = attempts.pause_s(error)
            if pause_s is None:
                raise
        await asyncio.sleep(pause_s)

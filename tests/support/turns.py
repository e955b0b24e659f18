"""Whether work on the event loop leaves others their turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass
class Turns:
    """How many turns somebody else has had.

    Attributes:
        taken: how many.
        longest_s: the most processor time that the loop's thread has spent between two of them, in seconds;
            what other threads spend, or the machine does meanwhile, is not counted.
    """

    taken: int = 0
    longest_s: float = 0.0


@asynccontextmanager
async def somebody_else() -> AsyncIterator[Turns]:
    """Takes each turn that the event loop gives, within the block."""
    turns = Turns()

    async def take() -> None:
        last = time.thread_time()
        while True:
            turns.taken += 1
            await asyncio.sleep(0)
            now = time.thread_time()
            turns.longest_s = max(turns.longest_s, now - last)
            last = now

    beside = asyncio.create_task(take())
    try:
        yield turns
    finally:
        beside.cancel()

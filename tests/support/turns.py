"""Whether work on the event loop leaves others their turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass
class Turns:
    """How many turns somebody else has had."""

    taken: int = 0


@asynccontextmanager
async def somebody_else() -> AsyncIterator[Turns]:
    """Takes each turn that the event loop gives, within the block."""
    turns = Turns()

    async def take() -> None:
        while True:
            turns.taken += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(take())
    try:
        yield turns
    finally:
        beside.cancel()

"""Parts for tests of a `Batcher` without replicas: images, places, and sends that wait."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from serving.batching import Entry, LaneKey, Place
from serving.prediction import RequestContext

LANE = LaneKey("digits", 1)
FAR = 1e12


def asking(deadline: float = FAR, caller: str = "") -> RequestContext:
    return RequestContext("id", "http", deadline, caller=caller)


def pixels(value: int) -> np.ndarray:
    return np.full((1, 1, 1), value, np.uint8)


class ScriptedSend:
    """Sends that wait until the test lets them go; the answer to a pixel is its value."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(
        self, _lane: LaneKey, batch: Sequence[Entry], _place: Place, _patience_s: float | None
    ) -> np.ndarray:
        self.batches.append([int(entry.pixels[0, 0, 0]) for entry in batch])
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return np.array([[entry.pixels[0, 0, 0]] for entry in batch], np.float32)


class Places:
    """So many calls at once, whatever the lane: each at a replica of its own, or all at one."""

    def __init__(self, count: int, *, at_one_replica: bool = False) -> None:
        self._count = count
        self._at_one_replica = at_one_replica
        self.free = count

    @property
    def behind(self) -> bool:
        return self._at_one_replica and self._count - self.free > 1

    def __call__(self, _lane: LaneKey) -> Place | None:
        if not self.free:
            return None
        self.free -= 1
        return self

    def release(self) -> None:
        self.free += 1

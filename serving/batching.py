"""Work-conserving batches: an idle replica gets a request at once; while all are busy requests gather.

There is no fixed wait. A lane is one queue, for one version of one model; whenever a request arrives or a
call ends, the lane sends what has gathered, up to the largest batch, as long as there is a free slot at a
replica. A request whose deadline has passed, or whose caller has left, is dropped before it costs compute.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, NamedTuple, Self

import numpy as np
import structlog

from serving.errors import DeadlineExceeded, Internal, SluiceError
from serving.prediction import RequestContext

_log = structlog.get_logger()


class LaneKey(NamedTuple):
    """What may share a batch: images for the same version of the same model have the same shape."""

    model: str
    version: int


@dataclass(eq=False, slots=True)
class Entry:
    """One image in a queue. `future` becomes its row of scores, float32 [K].

    `context` is that of its request, if it has one.
    """

    pixels: np.ndarray
    deadline: float
    enqueued: float
    future: asyncio.Future[np.ndarray]
    context: RequestContext | None = None

    @property
    def routed(self) -> bool:
        """Whether a rollout chose its version: only such calls are evidence for or against one."""
        return self.context is not None and self.context.route is not None


@dataclass(eq=False, slots=True)
class Lane:
    """One queue and the calls it has in flight."""

    queue: deque[Entry] = field(default_factory=deque)
    in_flight: int = 0


class Taken(NamedTuple):
    """What `take` took off a queue: entries to send as one batch, and entries that are too late."""

    batch: list[Entry]
    expired: list[Entry]


Send = Callable[[LaneKey, Sequence[Entry]], Awaitable[np.ndarray]]
"""Sends a batch; returns scores, float32 [N, K], a row for each entry."""

Reason = Literal["idle", "freed", "full"]
"""Why a batch left: a slot was free as its image came; a call ended; it was as large as it may be."""


def take(queue: deque[Entry], *, free_slots: int, max_batch: int, now: float) -> Taken:
    """Take the next batch off the front of `queue`, in order of arrival; empty if no slot is free.

    Entries whose caller has left are dropped on the way, entries whose deadline has passed come back apart.
    """
    taken = Taken([], [])
    if free_slots <= 0:
        return taken
    while queue and len(taken.batch) < max_batch:
        entry = queue.popleft()
        if entry.future.done():
            continue
        (taken.batch if now < entry.deadline else taken.expired).append(entry)
    return taken


class Batcher:
    """Gathers images into batches and hands each caller its own row. Use as an async context manager.

    Args:
        send: sends a batch.
        slots: calls that the replicas take at once for a lane. Zero means that none can be reached: one
            call is made all the same, so that callers hear why.
        max_batch: images in one batch.
        left: is told of each batch that leaves: its lane, its size, and why it left then.
        clock: the monotonic clock, in seconds.
    """

    def __init__(
        self,
        send: Send,
        slots: Callable[[LaneKey], int],
        *,
        max_batch: int,
        left: Callable[[LaneKey, int, Reason], None] = lambda _lane, _size, _reason: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send = send
        self._left = left
        self._slots = slots
        self._max_batch = max_batch
        self._clock = clock
        self._lanes: dict[LaneKey, Lane] = {}
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._tasks.__aexit__(kind, error, traceback)

    def enqueue(
        self, key: LaneKey, pixels: np.ndarray, deadline: float, context: RequestContext | None = None
    ) -> asyncio.Future[np.ndarray]:
        """Queue one image, uint8 [H,W,C]; the future becomes its scores, float32 [K], or a SluiceError.

        Cancelling the future takes this image out, and no other.
        """
        future: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        lane = self._lanes.setdefault(key, Lane())
        lane.queue.append(Entry(pixels, deadline, self._clock(), future, context))
        self._pump(key, lane, "idle")
        return future

    def depth(self) -> int:
        """How many images wait, over all lanes."""
        return sum(len(lane.queue) for lane in self._lanes.values())

    def depths(self) -> dict[str, int]:
        """How many images wait for each model that has a lane."""
        found: dict[str, int] = {}
        for key, lane in list(self._lanes.items()):
            found[key.model] = found.get(key.model, 0) + len(lane.queue)
        return found

    def _pump(self, key: LaneKey, lane: Lane, why: Reason) -> None:
        """Send what can be sent now, `why` it can be."""
        while lane.queue:
            free_slots = max(self._slots(key), 1) - lane.in_flight
            taken = take(lane.queue, free_slots=free_slots, max_batch=self._max_batch, now=self._clock())
            for entry in taken.expired:
                entry.future.set_exception(
                    DeadlineExceeded("the deadline passed while waiting for a replica", stage="queue")
                )
            if not taken.batch:
                if free_slots <= 0:
                    break
                continue
            lane.in_flight += 1
            self._left(key, len(taken.batch), "full" if len(taken.batch) == self._max_batch else why)
            self._tasks.create_task(self._run(key, lane, taken.batch))
        if not lane.queue and not lane.in_flight:
            self._lanes.pop(key, None)

    async def _run(self, key: LaneKey, lane: Lane, batch: list[Entry]) -> None:
        try:
            rows = await self._send(key, batch)
            for entry, row in zip(batch, rows, strict=True):
                if not entry.future.done():
                    entry.future.set_result(row)
        except asyncio.CancelledError:
            for entry in batch:
                entry.future.cancel()
            raise
        except Exception as error:  # whatever it is, every caller must hear of it
            if not isinstance(error, SluiceError):
                _log.exception("a batch failed in an unforeseen way", model=key.model, version=key.version)
                error = Internal("the batch failed in an unforeseen way; the log says how", stage="backend")
            for entry in batch:
                if not entry.future.done():
                    entry.future.set_exception(error)
        finally:
            lane.in_flight -= 1
            self._pump(key, lane, "freed")

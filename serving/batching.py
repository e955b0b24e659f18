"""Work-conserving batches: an idle replica gets a request at once; while all are busy, requests gather.

There is no fixed wait. A lane is one queue, for one version of one model; whenever a request arrives or a
call ends, lanes take turns to send what has gathered, up to the largest batch, as long as there is a place
at a replica. A batch that would queue there behind another one of its lane leaves only once it is as large:
a smaller one would be done no sooner, and costs more than as part of a larger one. Within a lane callers
take turns, so that one who floods it delays only itself. A request whose caller has left, or that recent
latencies say cannot be answered before its deadline, is dropped before it costs compute; a call that all its
callers have left is cancelled.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Generic, Literal, NamedTuple, Protocol, Self, TypeVar

import numpy as np
import structlog

from serving.errors import DeadlineExceeded, Internal, Overloaded, SluiceError, without_frames
from serving.latency_profile import LatencyProfile, least_wait_s
from serving.prediction import RequestContext
from serving.turns import TurnQueue

_log = structlog.get_logger()

# Long enough for much of a queue to empty, short enough that replicas are not left idle.
RETRY_AFTER_S = 1.0

# Beyond this many, the profile of the version that was called longest ago is forgotten.
_MOST_PROFILES = 256


class LaneKey(NamedTuple):
    """What may share a batch: images for the same version of the same model have the same shape."""

    model: str
    version: int


@dataclass(eq=False, slots=True)
class Entry:
    """One image in a queue, uint8 [H,W,C], of the request with this context.

    `future` becomes its row of scores, float32 [K].
    """

    pixels: np.ndarray
    context: RequestContext
    enqueued: float
    future: asyncio.Future[np.ndarray]

    @property
    def routed(self) -> bool:
        """Whether a rollout chose its version: only such calls are evidence for or against one."""
        return self.context.route is not None


@dataclass(eq=False, slots=True)
class Lane:
    """One queue, and the calls and images it has in flight.

    `abandoned` counts the images whose caller left since those were last cleared out.
    """

    queue: TurnQueue[Entry] = field(default_factory=TurnQueue)
    in_flight: int = 0
    images_in_flight: int = 0
    abandoned: int = 0

    def is_worth_a_call(self) -> bool:
        """Whether what waits makes a batch that is no smaller than those in flight are on average."""
        return len(self.queue) * self.in_flight >= self.images_in_flight


class Taken(NamedTuple):
    """What `take` took off a queue: entries to send as one batch, and entries that are too late."""

    batch: list[Entry]
    expired: list[Entry]


class Place(Protocol):
    """Room for one batch at the replicas."""

    @property
    def behind(self) -> bool:
        """Whether another batch of the lane is there already, which is computed first."""

    def release(self) -> None:
        """Give it back."""


AnyPlace = TypeVar("AnyPlace", bound=Place)

Book = Callable[[LaneKey], AnyPlace | None]
"""Takes a place for a batch of a lane, if there is one."""

Send = Callable[[LaneKey, Sequence[Entry], AnyPlace, float | None], Awaitable[np.ndarray]]
"""Sends a batch to its place; returns scores, float32 [N, K], a row for each entry. The last argument is
after how many seconds the answer is overdue, None while that is unknown."""

Reason = Literal["idle", "freed", "full"]
"""Why a batch left: a place was free when its image came; a call ended; it was as large as it may be."""


def take(
    queue: TurnQueue[Entry],
    *,
    max_batch: int,
    now: float,
    least_s: Callable[[int], float] = lambda _size: 0.0,
) -> Taken:
    """Take the next batch off the front of `queue`.

    Entries whose caller has left are dropped on the way; entries that cannot be answered in time are returned
    separately. A batch stays as small as its most urgent entry needs.

    Args:
        queue: who waits.
        max_batch: entries in one batch.
        now: the time.
        least_s: how long a batch of this size takes even if all goes well.
    """
    taken = Taken([], [])
    most_urgent = float("inf")
    soonest, full = now + least_s(1), now + least_s(max_batch)
    while queue and len(taken.batch) < max_batch:
        entry = queue.first()
        deadline = entry.context.deadline
        urgent = min(most_urgent, deadline)
        if entry.future.done():
            queue.popleft()
        elif soonest >= deadline:
            taken.expired.append(queue.popleft())
        elif taken.batch and full >= urgent and now + least_s(len(taken.batch) + 1) >= urgent:
            break
        else:
            taken.batch.append(queue.popleft())
            most_urgent = urgent
    return taken


class Batcher(Generic[AnyPlace]):
    """Gathers images into batches and hands each caller its own row. Use as an async context manager.

    Args:
        send: sends a batch.
        book: takes a place for a batch; gives one even if no replica can be reached, for callers to hear why.
        max_batch: images in one batch.
        target_s: once full batches wait for every place, an image is refused if it would wait longer.
        left: called for each batch that leaves, with its lane, its size, and why it left then.
        clock: the monotonic clock, in seconds.
    """

    def __init__(
        self,
        send: Send[AnyPlace],
        book: Book[AnyPlace],
        *,
        max_batch: int,
        target_s: float = float("inf"),
        left: Callable[[LaneKey, int, Reason], None] = lambda _lane, _size, _reason: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send = send
        self._left = left
        self._book = book
        self._max_batch = max_batch
        self._target_s = target_s
        self._clock = clock
        self._lanes: OrderedDict[LaneKey, Lane] = OrderedDict()  # whose turn is next comes first
        self._profiles: OrderedDict[LaneKey, LatencyProfile] = OrderedDict()  # the latest use comes last
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

    def check(self, key: LaneKey, context: RequestContext) -> None:
        """Refuse a request that cannot be done in time, before any work is spent on it.

        Raises:
            DeadlineExceeded: it cannot be done before the deadline.
            Overloaded: it cannot be done within the target; it may be worth a try later.
        """
        profile = self._profiles.get(key)
        if profile is None:
            return
        now, lane = self._clock(), self._lanes.get(key, _IDLE)
        ahead, deadline = lane.queue.ahead_of(context.caller), context.deadline
        wait_s = least_wait_s(profile, queued=ahead, slots=lane.in_flight, max_batch=self._max_batch, now=now)
        if now + wait_s > deadline:
            text = f"it would take at least {wait_s:.3f} s, and the deadline is in {deadline - now:.3f} s"
            if now >= deadline:
                text = "the deadline has passed before it could be queued"
            raise DeadlineExceeded(text, stage="queue")
        if wait_s > self._target_s and ahead >= self._max_batch * max(lane.in_flight, 1):
            text = f"{ahead} images are queued, as many as finish in time"
            raise Overloaded(text, stage="queue", retry_after_s=RETRY_AFTER_S)

    def enqueue(
        self, key: LaneKey, pixels: np.ndarray, context: RequestContext
    ) -> asyncio.Future[np.ndarray]:
        """Queue one image of a request, uint8 [H,W,C]; the future becomes its scores, float32 [K], or a
        SluiceError.

        Cancelling the future takes this image out, and no other.
        """
        future: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane()
        lane.queue.append(context.caller, Entry(pixels, context, self._clock(), future))
        while self._send_next(key, lane, "idle"):
            pass
        return future

    def abandoned(self, key: LaneKey, images: int) -> None:
        """Note that a caller left who had queued this many images.

        Abandoned entries are cleared out once they may be half of the queue, not one by one. While replicas
        hang nothing else would take them out, and they must neither hold memory nor count as work ahead of
        others.
        """
        lane = self._lanes.get(key)
        if lane is None:
            return
        lane.abandoned += images
        if 2 * lane.abandoned >= len(lane.queue):
            lane.abandoned = 0
            lane.queue.keep(lambda entry: not entry.future.done())
            if not lane.queue and not lane.in_flight:
                del self._lanes[key]

    def depth(self) -> int:
        """How many images wait, over all lanes."""
        return sum(len(lane.queue) for lane in self._lanes.values())

    def depths(self) -> dict[str, int]:
        """How many images wait for each model that has a lane."""
        found: dict[str, int] = {}
        for key, lane in list(self._lanes.items()):
            found[key.model] = found.get(key.model, 0) + len(lane.queue)
        return found

    def take_turns(self) -> None:
        """Send what can be sent after a place was given back: a batch of each lane in turn."""
        turns = deque(self._lanes.items())
        while turns:
            key, lane = turns.popleft()
            if self._send_next(key, lane, "freed"):
                turns.append((key, lane))

    def _send_next(self, key: LaneKey, lane: Lane, why: Reason) -> bool:
        """Send a lane's next batch, if one waits and there is a place for it; whether it was sent."""
        place = self._book(key) if lane.queue else None
        if place is None:
            return False
        if place.behind and not lane.is_worth_a_call():
            place.release()
            return False
        now, profile = self._clock(), self._profile(key)
        taken = take(
            lane.queue, max_batch=self._max_batch, now=now, least_s=lambda size: profile.least_s(size, now)
        )
        for entry in taken.expired:
            entry.future.set_exception(
                DeadlineExceeded("the deadline passed, or could not be kept, in the queue", stage="queue")
            )
        if not taken.batch:
            place.release()
            return False
        lane.in_flight += 1
        lane.images_in_flight += len(taken.batch)
        self._lanes.move_to_end(key)
        self._left(key, len(taken.batch), "full" if len(taken.batch) == self._max_batch else why)
        call = self._tasks.create_task(self._run(key, lane, taken.batch, place))
        _end_if_unwanted(taken.batch, call)
        return True

    def _profile(self, key: LaneKey) -> LatencyProfile:
        found = self._profiles.get(key)
        if found is not None:
            self._profiles.move_to_end(key)
            return found
        while len(self._profiles) >= _MOST_PROFILES:
            self._profiles.popitem(last=False)
        found = self._profiles[key] = LatencyProfile()
        return found

    async def _run(self, key: LaneKey, lane: Lane, batch: list[Entry], place: AnyPlace) -> None:
        profile, started = self._profile(key), self._clock()
        try:
            rows = await self._send(key, batch, place, profile.patience_s(len(batch)))
            now = self._clock()
            profile.learn(len(batch), now - started, now)
            for entry, row in zip(batch, rows, strict=True):
                if not entry.future.done():
                    entry.future.set_result(row)
        except asyncio.CancelledError as error:
            for entry in batch:
                entry.future.cancel()
            without_frames(error)
            raise
        except Exception as error:  # whatever it is, every caller must hear of it
            if not isinstance(error, SluiceError):
                _log.exception("a batch failed unexpectedly", model=key.model, version=key.version)
                error = Internal("the batch failed unexpectedly; the log says how", stage="backend")
            without_frames(error)
            for entry in batch:
                if not entry.future.done():
                    entry.future.set_exception(error)
        finally:
            lane.in_flight -= 1
            lane.images_in_flight -= len(batch)
            place.release()
            self.take_turns()
            if not lane.queue and not lane.in_flight:
                self._lanes.pop(key, None)


def _end_if_unwanted(batch: Sequence[Entry], call: asyncio.Task[None]) -> None:
    """Cancel a call once the last of its callers has left, watching one of those who wait at a time."""
    if call.done():
        return
    for entry in batch:
        if not entry.future.done():
            entry.future.add_done_callback(lambda _: _end_if_unwanted(batch, call))
            return
    call.cancel()


_IDLE = Lane()

"""Batches: what leaves together, when, and what becomes of those who leave early."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

import numpy as np
import pytest

from serving.batching import Batcher, Entry, LaneKey, take
from serving.errors import DeadlineExceeded, Internal, Unavailable
from tests.support.fake_replica import until

LANE = LaneKey("digits", 1)
FAR = 1e12


def pixels(value: int) -> np.ndarray:
    return np.full((1, 1, 1), value, np.uint8)


class ScriptedSend:
    """Sends that wait until the test lets them go; the answer to a pixel is its value."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, _lane: LaneKey, batch: Sequence[Entry]) -> np.ndarray:
        self.batches.append([int(entry.pixels[0, 0, 0]) for entry in batch])
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return np.array([[entry.pixels[0, 0, 0]] for entry in batch], np.float32)


def entry(deadline: float, *, left: bool = False) -> Entry:
    future: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
    if left:
        future.cancel()
    return Entry(pixels(0), deadline, 0.0, future)


@pytest.mark.parametrize(
    ("free_slots", "max_batch", "taken", "remaining"),
    [(0, 4, 0, 6), (1, 4, 4, 2), (1, 6, 6, 0), (1, 32, 6, 0), (-1, 4, 0, 6)],
)
async def test_take_fills_a_batch_if_a_slot_is_free(
    free_slots: int, max_batch: int, taken: int, remaining: int
) -> None:
    queue = deque(entry(FAR) for _ in range(6))
    order = list(queue)
    found = take(queue, free_slots=free_slots, max_batch=max_batch, now=0.0)
    assert found.batch == order[:taken]
    assert list(queue) == order[taken:]
    assert len(queue) == remaining
    assert found.expired == []


async def test_take_drops_who_left_and_sets_apart_who_is_late() -> None:
    late, left, good, more = entry(1.0), entry(FAR, left=True), entry(FAR), entry(FAR)
    queue = deque([late, left, good, more])
    found = take(queue, free_slots=1, max_batch=1, now=1.0)
    assert found.batch == [good]
    assert found.expired == [late]
    assert list(queue) == [more]


async def test_an_idle_replica_gets_a_request_at_once_and_a_busy_one_a_batch() -> None:
    send = ScriptedSend()
    async with Batcher(send, lambda _: 1, max_batch=8) as batcher:
        futures = [batcher.enqueue(LANE, pixels(value), FAR) for value in range(5)]
        await until(lambda: len(send.batches) == 1)
        assert send.batches == [[0]]
        assert batcher.depth() == 4
        send.gate.set()
        rows = await asyncio.gather(*futures)
    assert send.batches == [[0], [1, 2, 3, 4]]
    assert [float(row[0]) for row in rows] == [0, 1, 2, 3, 4]


async def test_batches_are_no_larger_than_the_limit_and_slots_run_beside_each_other() -> None:
    send = ScriptedSend()
    async with Batcher(send, lambda _: 2, max_batch=3) as batcher:
        futures = [batcher.enqueue(LANE, pixels(value), FAR) for value in range(10)]
        await until(lambda: len(send.batches) == 2)
        send.gate.set()
        await asyncio.gather(*futures)
    assert send.batches == [[0], [1], [2, 3, 4], [5, 6, 7], [8, 9]]


async def test_lanes_do_not_mix() -> None:
    send = ScriptedSend()
    send.gate.set()
    async with Batcher(send, lambda _: 1, max_batch=8) as batcher:
        futures = [batcher.enqueue(LaneKey("digits", value % 2), pixels(value), FAR) for value in range(6)]
        await asyncio.gather(*futures)
    assert sorted(map(sorted, send.batches)) == [[0], [1], [2, 4], [3, 5]]


async def test_who_leaves_takes_nobody_along() -> None:
    send = ScriptedSend()
    async with Batcher(send, lambda _: 1, max_batch=8) as batcher:
        first = batcher.enqueue(LANE, pixels(0), FAR)
        waiting = [batcher.enqueue(LANE, pixels(value), FAR) for value in (1, 2, 3)]
        await until(lambda: len(send.batches) == 1)
        first.cancel()
        waiting[1].cancel()
        send.gate.set()
        rows = await asyncio.gather(waiting[0], waiting[2])
    assert send.batches == [[0], [1, 3]]
    assert [float(row[0]) for row in rows] == [1, 3]


async def test_who_is_late_hears_so_and_costs_nothing() -> None:
    now = 100.0
    send = ScriptedSend()
    async with Batcher(send, lambda _: 1, max_batch=8, clock=lambda: now) as batcher:
        first = batcher.enqueue(LANE, pixels(0), FAR)
        late = batcher.enqueue(LANE, pixels(1), 101.0)
        good = batcher.enqueue(LANE, pixels(2), FAR)
        await until(lambda: len(send.batches) == 1)
        now = 102.0
        send.gate.set()
        await first
        with pytest.raises(DeadlineExceeded):
            await late
        assert float((await good)[0]) == 2
    assert send.batches == [[0], [2]]


async def test_without_a_replica_callers_hear_why() -> None:
    send = ScriptedSend()
    send.gate.set()
    send.error = Unavailable("nobody there")
    async with Batcher(send, lambda _: 0, max_batch=8) as batcher:
        futures = [batcher.enqueue(LANE, pixels(value), FAR) for value in range(3)]
        found = await asyncio.gather(*futures, return_exceptions=True)
    assert [str(each) for each in found] == ["nobody there"] * 3


async def test_an_unforeseen_failure_reaches_callers_as_an_internal_error() -> None:
    send = ScriptedSend()
    send.gate.set()
    send.error = ZeroDivisionError("a bug")
    async with Batcher(send, lambda _: 1, max_batch=8) as batcher:
        with pytest.raises(Internal, match="unforeseen"):
            await batcher.enqueue(LANE, pixels(0), FAR)
        send.error = None
        assert float((await batcher.enqueue(LANE, pixels(7), FAR))[0]) == 7

"""What a batcher does with the latencies that it has learned: it refuses in time, and notices hung calls."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from serving.batching import Batcher, Entry, LaneKey, Place
from serving.errors import DeadlineExceeded, Overloaded
from serving.latency_profile import LEAST_PATIENCE_S
from tests.support.batches import LANE, Places, asking, pixels


async def test_what_cannot_be_done_in_time_is_refused_before_it_costs_anything() -> None:
    now = 100.0

    async def send(
        _lane: LaneKey, batch: Sequence[Entry], _place: Place, _patience_s: float | None
    ) -> np.ndarray:
        nonlocal now
        now += 1.0
        return np.zeros((len(batch), 1), np.float32)

    places = Places(1)
    async with Batcher(send, places, max_batch=8, clock=lambda: now) as batcher:
        batcher.check(LANE, asking(now + 0.01))  # nothing is known yet
        for _ in range(20):
            await batcher.enqueue(LANE, pixels(0), asking())
        with pytest.raises(DeadlineExceeded, match="would take at least"):
            batcher.check(LANE, asking(now + 0.5))
        batcher.check(LANE, asking(now + 1.5))
        with pytest.raises(DeadlineExceeded):
            await batcher.enqueue(LANE, pixels(0), asking(now + 0.5))
        now += 60.0  # refusing for ever would mean never to learn better
        batcher.check(LANE, asking(now + 0.5))
    assert places.free == 1


async def test_a_queue_that_is_longer_than_the_target_takes_no_more() -> None:
    now, hold = 100.0, asyncio.Event()
    hold.set()

    async def send(
        _lane: LaneKey, batch: Sequence[Entry], _place: Place, _patience_s: float | None
    ) -> np.ndarray:
        nonlocal now
        await hold.wait()
        now += 1.0
        return np.zeros((len(batch), 1), np.float32)

    async with Batcher(send, Places(1), max_batch=2, target_s=3.5, clock=lambda: now) as batcher:
        for _ in range(20):
            await asyncio.gather(*(batcher.enqueue(LANE, pixels(0), asking()) for _ in range(3)))
        hold.clear()
        waiting = [batcher.enqueue(LANE, pixels(0), asking()) for _ in range(5)]
        batcher.check(LANE, asking())  # two batches, then its own
        waiting += [batcher.enqueue(LANE, pixels(0), asking()) for _ in range(2)]
        with pytest.raises(Overloaded) as refused:
            batcher.check(LANE, asking())
        assert refused.value.retry_after_s
        hold.set()
        await asyncio.gather(*waiting)
        batcher.check(LANE, asking())


async def test_a_model_that_is_slower_than_the_target_is_not_refused_while_nobody_waits() -> None:
    now = 100.0

    async def send(
        _lane: LaneKey, batch: Sequence[Entry], _place: Place, _patience_s: float | None
    ) -> np.ndarray:
        nonlocal now
        now += 3.0
        return np.zeros((len(batch), 1), np.float32)

    async with Batcher(send, Places(1), max_batch=2, target_s=2.0, clock=lambda: now) as batcher:
        for _ in range(20):
            batcher.check(LANE, asking())
            await batcher.enqueue(LANE, pixels(0), asking())
        waiting = [batcher.enqueue(LANE, pixels(0), asking()) for _ in range(3)]
        with pytest.raises(Overloaded):
            batcher.check(LANE, asking())
        await asyncio.gather(*waiting)


async def test_a_call_without_answer_is_overdue_once_latencies_are_known() -> None:
    seen: list[float | None] = []

    async def send(
        _lane: LaneKey, batch: Sequence[Entry], _place: Place, patience_s: float | None
    ) -> np.ndarray:
        seen.append(patience_s)
        return np.zeros((len(batch), 1), np.float32)

    async with Batcher(send, Places(1), max_batch=8) as batcher:
        for _ in range(10):
            await batcher.enqueue(LANE, pixels(0), asking())
    assert seen[0] is None
    assert seen[-1] == LEAST_PATIENCE_S


async def test_latencies_of_a_version_in_use_are_kept_however_many_others_come() -> None:
    seen: list[tuple[LaneKey, float | None]] = []

    async def send(
        lane: LaneKey, batch: Sequence[Entry], _place: Place, patience_s: float | None
    ) -> np.ndarray:
        seen.append((lane, patience_s))
        return np.zeros((len(batch), 1), np.float32)

    gone = LaneKey("digits", 0)
    async with Batcher(send, Places(1), max_batch=8) as batcher:
        for _ in range(10):
            await batcher.enqueue(gone, pixels(0), asking())
            await batcher.enqueue(LANE, pixels(0), asking())
        for version in range(2, 600):
            await batcher.enqueue(LaneKey("digits", version), pixels(0), asking())
            await batcher.enqueue(LANE, pixels(0), asking())
        await batcher.enqueue(gone, pixels(0), asking())
    assert {patience_s for lane, patience_s in seen[20:] if lane == LANE} == {LEAST_PATIENCE_S}
    assert seen[-1] == (gone, None)

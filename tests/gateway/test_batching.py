"""Batches: what leaves together, when, and what becomes of those who leave early."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from serving.batching import Batcher, Entry, LaneKey, Place, take
from serving.errors import DeadlineExceeded, Internal, Unavailable
from serving.turns import TurnQueue
from tests.support.batches import FAR, LANE, Places, ScriptedSend, asking, pixels
from tests.support.fake_replica import until


def entry(deadline: float, *, left: bool = False) -> Entry:
    future: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
    if left:
        future.cancel()
    return Entry(pixels(0), asking(deadline), 0.0, future)


def queue_of(*entries: Entry) -> TurnQueue[Entry]:
    queue: TurnQueue[Entry] = TurnQueue()
    for each in entries:
        queue.append("", each)
    return queue


@pytest.mark.parametrize(("max_batch", "taken"), [(4, 4), (6, 6), (32, 6)])
async def test_take_fills_a_batch_in_order_of_arrival(max_batch: int, taken: int) -> None:
    order = [entry(FAR) for _ in range(6)]
    queue = queue_of(*order)
    found = take(queue, max_batch=max_batch, now=0.0)
    assert found.batch == order[:taken]
    assert [queue.popleft() for _ in range(len(queue))] == order[taken:]
    assert found.expired == []


async def test_a_batch_is_as_small_as_its_most_urgent_image_needs() -> None:
    """A call takes a second an image: who has three seconds left gets a batch of two."""
    easy, urgent, hopeless, last = entry(FAR), entry(3.5), entry(0.5), entry(FAR)
    queue = queue_of(easy, urgent, hopeless, last, entry(FAR))
    found = take(queue, max_batch=8, now=0.0, least_s=float)
    assert found.batch == [easy, urgent, last]
    assert found.expired == [hopeless]
    assert len(queue) == 1


async def test_take_drops_who_left_and_sets_apart_who_is_late() -> None:
    late, left, good, more = entry(1.0), entry(FAR, left=True), entry(FAR), entry(FAR)
    queue = queue_of(late, left, good, more)
    found = take(queue, max_batch=1, now=1.0)
    assert found.batch == [good]
    assert found.expired == [late]
    assert len(queue) == 1
    assert queue.popleft() is more


async def test_an_idle_replica_gets_a_request_at_once_and_a_busy_one_a_batch() -> None:
    send = ScriptedSend()
    async with Batcher(send, Places(1), max_batch=8) as batcher:
        futures = [batcher.enqueue(LANE, pixels(value), asking()) for value in range(5)]
        await until(lambda: len(send.batches) == 1)
        assert send.batches == [[0]]
        assert batcher.depth() == 4
        send.gate.set()
        rows = await asyncio.gather(*futures)
    assert send.batches == [[0], [1, 2, 3, 4]]
    assert [float(row[0]) for row in rows] == [0, 1, 2, 3, 4]


async def test_batches_are_no_larger_than_the_limit_and_slots_run_beside_each_other() -> None:
    send = ScriptedSend()
    async with Batcher(send, Places(2), max_batch=3) as batcher:
        futures = [batcher.enqueue(LANE, pixels(value), asking()) for value in range(10)]
        await until(lambda: len(send.batches) == 2)
        send.gate.set()
        await asyncio.gather(*futures)
    assert send.batches == [[0], [1], [2, 3, 4], [5, 6, 7], [8, 9]]


async def test_behind_another_batch_leaves_what_is_as_large_and_else_waits_for_its_end() -> None:
    send = ScriptedSend()
    places = Places(2, at_one_replica=True)
    async with Batcher(send, places, max_batch=8) as batcher:
        futures = [batcher.enqueue(LANE, pixels(value), asking()) for value in range(2)]
        await until(lambda: send.batches == [[0], [1]])  # one image behind one other
        futures += [batcher.enqueue(LANE, pixels(value), asking()) for value in range(2, 6)]
        first = send.gate
        send.gate = asyncio.Event()
        first.set()
        await until(lambda: send.batches == [[0], [1], [2, 3, 4, 5]])  # a call has ended
        futures += [batcher.enqueue(LANE, pixels(value), asking()) for value in range(6, 9)]
        await asyncio.gather(*futures[:2])
        assert len(send.batches) == 3  # three would stand behind four, although there is a place
        assert places.free == 1
        futures.append(batcher.enqueue(LANE, pixels(9), asking()))
        await until(lambda: send.batches[3:] == [[6, 7, 8, 9]])
        send.gate.set()
        assert [int(row[0]) for row in await asyncio.gather(*futures)] == list(range(10))


async def test_lanes_do_not_mix() -> None:
    send = ScriptedSend()
    send.gate.set()
    async with Batcher(send, Places(2), max_batch=8) as batcher:
        futures = [
            batcher.enqueue(LaneKey("digits", value % 2), pixels(value), asking()) for value in range(6)
        ]
        await asyncio.gather(*futures)
    assert sorted(map(sorted, send.batches)) == [[0], [1], [2, 4], [3, 5]]


async def test_who_leaves_takes_nobody_along() -> None:
    send = ScriptedSend()
    async with Batcher(send, Places(1), max_batch=8) as batcher:
        first = batcher.enqueue(LANE, pixels(0), asking())
        waiting = [batcher.enqueue(LANE, pixels(value), asking()) for value in (1, 2, 3)]
        await until(lambda: len(send.batches) == 1)
        first.cancel()
        waiting[1].cancel()
        send.gate.set()
        rows = await asyncio.gather(waiting[0], waiting[2])
    assert send.batches == [[0], [1, 3]]
    assert [float(row[0]) for row in rows] == [1, 3]


async def test_a_call_ends_with_the_last_of_its_callers_and_not_before() -> None:
    send = ScriptedSend()
    places = Places(1)
    async with Batcher(send, places, max_batch=8) as batcher:
        first = batcher.enqueue(LANE, pixels(0), asking())
        second, third = (batcher.enqueue(LANE, pixels(value), asking()) for value in (1, 2))
        await until(lambda: len(send.batches) == 1)
        first.cancel()
        await until(lambda: len(send.batches) == 2)  # its place is free: the others have been sent
        second.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not places.free
        third.cancel()
        await until(lambda: places.free == 1)
        assert not batcher.depths()
        send.gate.set()
        assert float((await batcher.enqueue(LANE, pixels(7), asking()))[0]) == 7


async def test_a_caller_who_stays_gets_its_answer_when_the_others_leave() -> None:
    send = ScriptedSend()
    async with Batcher(send, Places(1), max_batch=8) as batcher:
        busy = batcher.enqueue(LANE, pixels(9), asking())
        leaving = [batcher.enqueue(LANE, pixels(value), asking()) for value in (0, 1)]
        staying = batcher.enqueue(LANE, pixels(2), asking())
        await until(lambda: len(send.batches) == 1)
        busy.cancel()
        await until(lambda: len(send.batches) == 2)
        for each in leaving:
            each.cancel()
        await asyncio.sleep(0)
        send.gate.set()
        assert float((await staying)[0]) == 2


async def test_while_replicas_hang_those_who_leave_leave_nothing_in_the_queue() -> None:
    send = ScriptedSend()
    async with Batcher(send, Places(1), max_batch=8) as batcher:
        hangs = batcher.enqueue(LANE, pixels(0), asking())
        waiting = [batcher.enqueue(LANE, pixels(value), asking()) for value in range(1, 11)]
        await until(lambda: len(send.batches) == 1)
        for count, each in enumerate(waiting, 1):
            each.cancel()
            batcher.abandoned(LANE, 1)
            assert batcher.depth() <= 2 * (len(waiting) - count), "half of what waits may have left"
        hangs.cancel()
        await until(lambda: not batcher.depths())
        batcher.abandoned(LANE, 1)  # the last to hear of it
        send.gate.set()
        assert float((await batcher.enqueue(LANE, pixels(7), asking()))[0]) == 7


async def test_who_floods_a_lane_waits_behind_itself() -> None:
    """A key has queued a hundred images; another's four leave in the first batch that has room for them."""
    send = ScriptedSend()
    async with Batcher(send, Places(1), max_batch=8) as batcher:
        flood = [batcher.enqueue(LANE, pixels(1), asking(caller="flood")) for _ in range(101)]
        rare = [batcher.enqueue(LANE, pixels(2), asking(caller="rare")) for _ in range(4)]
        send.gate.set()
        await asyncio.gather(*rare, *flood)
    assert sorted(send.batches[1]) == [1, 1, 1, 1, 2, 2, 2, 2]


async def test_what_a_flood_has_queued_does_not_count_against_others() -> None:
    now = 100.0

    async def send(
        _lane: LaneKey, batch: Sequence[Entry], _place: Place, _patience_s: float | None
    ) -> np.ndarray:
        nonlocal now
        now += 1.0
        if batch[0].pixels[0, 0, 0]:
            await asyncio.Event().wait()
        return np.zeros((len(batch), 1), np.float32)

    async with Batcher(send, Places(1), max_batch=1, clock=lambda: now) as batcher:
        for _ in range(20):
            await batcher.enqueue(LANE, pixels(0), asking())
        flood = [batcher.enqueue(LANE, pixels(1), asking(caller="flood")) for _ in range(50)]
        batcher.check(LANE, asking(now + 3.5, "rare"))
        with pytest.raises(DeadlineExceeded):
            batcher.check(LANE, asking(now + 3.5, "flood"))
        for each in flood:
            each.cancel()


async def test_who_is_late_hears_so_and_costs_nothing() -> None:
    now = 100.0
    send = ScriptedSend()
    async with Batcher(send, Places(1), max_batch=8, clock=lambda: now) as batcher:
        first = batcher.enqueue(LANE, pixels(0), asking())
        late = batcher.enqueue(LANE, pixels(1), asking(101.0))
        good = batcher.enqueue(LANE, pixels(2), asking())
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
    async with Batcher(send, Places(100), max_batch=8) as batcher:
        futures = [batcher.enqueue(LANE, pixels(value), asking()) for value in range(3)]
        found = await asyncio.gather(*futures, return_exceptions=True)
    assert [str(each) for each in found] == ["nobody there"] * 3


async def test_an_unforeseen_failure_reaches_callers_as_an_internal_error() -> None:
    send = ScriptedSend()
    send.gate.set()
    send.error = ZeroDivisionError("a bug")
    async with Batcher(send, Places(1), max_batch=8) as batcher:
        with pytest.raises(Internal, match="unexpectedly"):
            await batcher.enqueue(LANE, pixels(0), asking())
        send.error = None
        assert float((await batcher.enqueue(LANE, pixels(7), asking()))[0]) == 7


async def test_lanes_take_turns_at_a_place_that_they_share() -> None:
    order: list[int] = []

    async def send(
        lane: LaneKey, batch: Sequence[Entry], _place: Place, _patience_s: float | None
    ) -> np.ndarray:
        order.append(lane.version)
        await asyncio.sleep(0)
        return np.zeros((len(batch), 1), np.float32)

    async with Batcher(send, Places(1), max_batch=2) as batcher:
        busy = [batcher.enqueue(LaneKey("busy", 1), pixels(0), asking()) for _ in range(20)]
        rare = [batcher.enqueue(LaneKey("rare", 2), pixels(0), asking()) for _ in range(4)]
        await asyncio.gather(*busy, *rare)
    assert order[:6] == [1, 1, 2, 1, 2, 1]
    assert order.count(1) == 11

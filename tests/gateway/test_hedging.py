"""Calls that are late are made a second time, where that is wanted: when, and what it may cost."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import pytest

from serving import errors
from serving.backends import budget
from serving.backends.hedging import HedgeTimes, first_good
from serving.backends.pool import MAX_ATTEMPTS, RETRYABLE, Pool, Slot
from serving.batching import Batcher, Entry, LaneKey
from tests.support.batches import asking
from tests.support.fake_replica import FakeReplica, running, until
from tests.support.gateways import gateway_over
from tests.support.http import PATH, PNG, grey_png
from tests.support.replicas import replica


def test_a_call_is_late_beyond_about_the_95th_percentile_of_its_kind() -> None:
    times, rng = HedgeTimes(), random.Random(5)
    assert times.after_s("batches of 8") is None
    late = calls = 0
    for _ in range(4000):
        latency_s = rng.lognormvariate(-3.0, 0.4)
        after_s = times.after_s("batches of 8")
        if after_s is not None:
            calls += 1
            late += latency_s > after_s
        times.learn("batches of 8", latency_s)
    assert calls > 3900
    assert 0.03 < late / calls < 0.07
    assert times.after_s("batches of 16") is None


def test_of_more_kinds_than_are_kept_those_used_longest_ago_are_forgotten() -> None:
    times = HedgeTimes()
    for _ in range(20):
        times.learn("old but used", 0.1)
        times.learn("old", 0.1)
    for kind in range(2000):
        times.learn(kind, 0.1)
        if kind % 500 == 0:  # too rarely to be known anew once it was forgotten
            times.learn("old but used", 0.1)
    assert times.after_s("old but used") is not None
    assert times.after_s("old") is None


class Scripted:
    """A call that ends when the test says so."""

    def __init__(self) -> None:
        self.end: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.begun = asyncio.Event()
        self.cancelled = False

    async def __call__(self) -> str:
        self.begun.set()
        try:
            return await self.end
        except asyncio.CancelledError:
            self.cancelled = True
            raise


async def raced(first: Scripted, second: Scripted | None) -> str:
    hedge = None if second is None else second()
    return await first_good(first(), 0.001, lambda: hedge, retryable=RETRYABLE)


async def test_the_first_good_answer_wins_and_the_other_call_is_cancelled() -> None:
    first, second = Scripted(), Scripted()
    race = asyncio.create_task(raced(first, second))
    second.end.set_result("second")
    assert await race == "second"
    assert first.cancelled
    first, second = Scripted(), Scripted()
    first.end.set_exception(errors.Unavailable("gone"))
    with pytest.raises(errors.Unavailable, match="gone"):  # at once: it is a retry's turn, not a hedge's
        await raced(first, None)
    first, second = Scripted(), Scripted()
    race = asyncio.create_task(raced(first, second))
    await second.begun.wait()
    second.end.set_exception(errors.Internal("broken"))
    for _ in range(10):  # more turns of the loop than a failure takes to end the race, if it did
        await asyncio.sleep(0)
    assert not race.done()
    first.end.set_result("first")
    assert await race == "first"


async def test_a_failure_that_a_retry_cannot_mend_ends_both() -> None:
    first, second = Scripted(), Scripted()
    race = asyncio.create_task(raced(first, second))
    await second.begun.wait()
    second.end.set_exception(errors.InvalidInput("wrong shape"))
    with pytest.raises(errors.InvalidInput, match="wrong shape"):
        await race
    assert first.cancelled


async def test_who_leaves_a_race_ends_both_calls() -> None:
    first, second = Scripted(), Scripted()
    race = asyncio.create_task(raced(first, second))
    await second.begun.wait()
    race.cancel()
    with pytest.raises(asyncio.CancelledError):
        await race
    assert first.cancelled
    assert second.cancelled


async def test_no_second_call_is_begun_once_the_first_one_has_ended() -> None:
    begun = 0

    def second() -> None:
        nonlocal begun
        begun += 1

    async def answer() -> str:
        return "first"

    assert await first_good(answer(), 0.0, second, retryable=RETRYABLE) == "first"
    for _ in range(10):  # more turns of the loop than a timer that is due takes
        await asyncio.sleep(0)
    assert begun == 0


async def test_the_second_call_is_waited_for_if_the_first_one_fails_in_between() -> None:
    seen: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: seen.append(context))
    first, second = Scripted(), Scripted()
    race = asyncio.create_task(raced(first, second))
    await second.begun.wait()
    first.end.set_exception(errors.Unavailable("gone"))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not race.done()
    second.end.set_result("second")
    assert await race == "second"
    assert seen == []


@pytest.mark.parametrize("ends", ["answered", "left"])
async def test_a_race_has_ended_once_both_calls_have(ends: str) -> None:
    """What a call has taken it gives back as it ends."""
    first, second, may_end = Scripted(), Scripted(), asyncio.Event()

    async def slow_to_end() -> str:
        try:
            return await second()
        finally:
            await may_end.wait()

    race = asyncio.create_task(first_good(first(), 0.001, slow_to_end, retryable=RETRYABLE))
    await second.begun.wait()
    if ends == "answered":
        first.end.set_result("first")
    else:
        race.cancel()
    await until(lambda: second.cancelled)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not race.done()
    may_end.set()
    await asyncio.wait([race])
    assert race.cancelled() == (ends == "left")


async def test_hedges_come_out_of_the_budget_of_retries_and_need_a_free_place() -> None:
    """Nobody answers until all have waited: each call is late, and still few are made twice."""
    pool = Pool(
        [replica(f"127.0.0.1:{port}", limit=1000.0) for port in (1, 2, 3)],
        calls_per_replica=400,
        clock=lambda: 7.0,
    )
    release, begun = asyncio.Event(), 0

    async def late(_api: Any, _left_s: float) -> str:
        nonlocal begun
        begun += 1
        await release.wait()
        return "answer"

    calls = [
        asyncio.create_task(pool.call("digits", 1, late, deadline=60.0, hedge_after_s=0.0))
        for _ in range(300)
    ]
    most = 300 * budget.SHARE + budget.RESERVE_PER_S
    await until(lambda: begun >= 300 + most - 1)
    release.set()
    assert await asyncio.gather(*calls) == ["answer"] * 300
    assert most - 1 <= pool.hedges <= most
    assert begun == 300 + pool.hedges
    assert [each.in_flight for each in pool.replicas] == [each.booked for each in pool.replicas] == [0] * 3
    before = pool.hedges
    places = [pool.book("digits", 1) for _ in range(1200)]  # every place is taken
    answer = await pool.call("digits", 1, late, deadline=60.0, slot=places[0], hedge_after_s=0.0)
    assert (answer, pool.hedges) == ("answer", before)
    for place in places:
        assert place is not None
        place.release()
    await pool.aclose()


async def test_a_hedge_that_finds_its_replica_full_has_not_tried_it() -> None:
    broken, full = replica("127.0.0.1:1"), replica("127.0.0.1:2")
    pool = Pool([broken, full], calls_per_replica=2)
    asked: list[str] = []
    hedged = asyncio.Event()

    async def answer(api: Any, _left_s: float) -> str:
        asked.append(api.address)
        if len(asked) == 1:
            await hedged.wait()
            raise errors.Unavailable("broken")
        if len(asked) == 2:
            hedged.set()
            raise errors.Overloaded("Server Threadpool Exhausted")
        return str(api.address)

    broken.latency_s, full.latency_s = 0.001, 0.002  # so that it is asked first
    assert await pool.call("digits", 1, answer, deadline=time.monotonic() + 60, hedge_after_s=0.001)
    assert asked == [broken.address, full.address, full.address]
    await pool.aclose()


async def test_the_place_of_a_hedge_that_failed_is_taken_by_who_waits() -> None:
    one, two = replica("127.0.0.1:1"), replica("127.0.0.1:2")
    pool = Pool([one, two], calls_per_replica=1)
    asked: list[int] = []
    first, hedge = asyncio.Event(), asyncio.Event()

    async def send(lane: LaneKey, batch: Sequence[Entry], slot: Slot, _patience_s: float | None) -> Any:
        async def answer(_api: Any, _left_s: float) -> np.ndarray:
            asked.append(len(batch))
            if len(asked) == 1:
                await first.wait()
            if len(asked) == 2:
                await hedge.wait()
                raise errors.Unavailable("broken")
            return np.zeros((len(batch), 10), np.float32)

        deadline = max(each.context.deadline for each in batch)
        return await pool.call(*lane, answer, deadline=deadline, slot=slot, hedge_after_s=0.001)

    async with Batcher(send, lambda lane: pool.book(*lane), max_batch=8) as batcher:
        pool.freed = batcher.take_turns
        key, picture, context = (
            LaneKey("digits", 1),
            np.zeros((8, 8, 1), np.uint8),
            asking(time.monotonic() + 60),
        )
        alone = batcher.enqueue(key, picture, context)
        await until(lambda: len(asked) == 2)
        waiting = [batcher.enqueue(key, picture, context) for _ in range(2)]
        assert batcher.depth() == 2
        hedge.set()
        await asyncio.gather(*waiting)
        assert not alone.done()
        first.set()
        await alone
    assert asked == [1, 1, 2]
    await pool.aclose()


async def taken_s(client: httpx.AsyncClient, count: int) -> list[float]:
    """How long so many requests took, made four at a time."""
    picture = grey_png(100)
    taken: list[float] = []

    async def post() -> None:
        while len(taken) < count:
            answer = await client.post(PATH, content=picture, headers=PNG)
            assert answer.status_code == 200
            taken.append(answer.elapsed.total_seconds())

    await asyncio.gather(*(post() for _ in range(4)))
    return taken


@pytest.mark.parametrize("hedge", [False, True])
async def test_hedging_takes_the_tail_of_slow_replicas_away(hedge: bool) -> None:
    """Every twentieth call takes half a second, whoever makes it."""
    calls, slow_s = 0, 0.5

    async def now_and_then(_request: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % 20 == 0:
            await asyncio.sleep(slow_s)

    async with (
        running(FakeReplica(before_predict=now_and_then)) as one,
        running(FakeReplica(before_predict=now_and_then)) as two,
        gateway_over(one, two, hedge=hedge, calls_per_replica=8) as (up, client),
    ):
        await taken_s(client, 60)  # so that latencies are known
        before, hedged = calls, up.pool.hedges
        slow = sum(each >= slow_s for each in await taken_s(client, 120))
        made = calls - before
        hedged = up.pool.hedges - hedged
    if hedge:
        assert slow <= 2
        assert 1 <= hedged <= made * budget.SHARE + budget.RESERVE_PER_S
    else:
        assert slow >= made // 20 - 1
        assert hedged == 0


async def test_attempts_are_bounded_hedges_included() -> None:
    pool = Pool(
        [replica(f"127.0.0.1:{port}", limit=1000.0) for port in range(1, 7)],
        calls_per_replica=2,
        clock=lambda: 7.0,
    )
    attempts = 0

    async def late_and_lost(_api: Any, _left_s: float) -> None:
        nonlocal attempts
        attempts += 1
        goal = attempts + attempts % 2
        await until(lambda: attempts >= goal)  # until it has been hedged
        raise errors.Unavailable("lost")

    with pytest.raises(errors.Unavailable, match="lost"):
        await pool.call("digits", 1, late_and_lost, deadline=60.0, hedge_after_s=0.0)
    assert attempts == MAX_ATTEMPTS + 1, "the last one, too, may be hedged"
    await pool.aclose()

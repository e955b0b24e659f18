"""Calls of which nobody knows how long they take: a replica that joins may answer them first."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import pytest

from serving.backends import pool as pools
from serving.backends.breaker import Breaker
from serving.backends.hedging import first_good
from serving.backends.pool import RETRYABLE, Pool, Slot
from serving.backends.replica import Replica
from serving.backends.tfserving import TensorFlowServing
from serving.errors import InvalidInput, Overloaded, SluiceError
from tests.support.fake_replica import FakeReplica, running, until
from tests.support.gateways import gateway_over
from tests.support.http import PATH, PNG, grey_png
from tests.support.replicas import replica

TENSORS = {"instances": [[[[200]] * 8] * 8]}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are late early."""
    monkeypatch.setattr(pools, "UNKNOWN_PATIENCE_S", 0.05)
    monkeypatch.setattr(pools, "LOOK_AGAIN_S", 0.02)


def newcomer(address: str) -> Replica:
    found = replica(address)
    found.reachable = False
    found.came(time.monotonic())
    return found


class Hanging:
    """A call that one replica never answers; others do, once they may."""

    def __init__(self, at: Replica) -> None:
        self.at = at.address
        self.asked: list[str] = []
        self.may_answer = asyncio.Event()

    async def __call__(self, api: TensorFlowServing, _timeout_s: float) -> str:
        self.asked.append(api.address)
        if api.address == self.at:
            await asyncio.Event().wait()
        await self.may_answer.wait()
        return api.address


async def test_a_second_call_is_begun_as_soon_as_there_is_somebody_to_ask() -> None:
    asked = 0

    async def hang() -> str:
        await asyncio.Event().wait()
        raise AssertionError

    async def answer() -> str:
        return "second"

    def second() -> Any:
        nonlocal asked
        asked += 1
        return answer() if asked == 3 else None

    async with asyncio.timeout(10):
        assert await first_good(hang(), 0.01, second, retryable=RETRYABLE, again_s=0.01) == "second"
    assert asked == 3


@pytest.mark.parametrize("kind", ["batch", "tensors"])
async def test_a_call_on_the_only_replica_is_answered_by_one_that_joins(kind: str) -> None:
    silent = replica("127.0.0.1:1")
    pool, call = Pool([silent], calls_per_replica=1), Hanging(silent)
    slot = pool.book("digits", 1) if kind == "batch" else None
    task = asyncio.create_task(pool.call("digits", 1, call, deadline=time.monotonic() + 60, slot=slot))
    await until(lambda: bool(call.asked))
    good = newcomer("127.0.0.1:2")
    if slot is None:
        good.book("digits", 1)  # tensors need no place of a batch's
    pool.join(good)
    await until(lambda: len(call.asked) == 2)
    assert silent.breaker == Breaker(), "it may be slow, and answer yet"
    assert [silent.in_flight, good.in_flight, good.booked] == [1, 1, 1]
    call.may_answer.set()
    async with asyncio.timeout(10):
        assert await task == good.address
    assert not silent.breaker.allows(time.monotonic()), "or else the next call would go there"
    if slot is None:
        good.give_back("digits", 1)
    else:
        slot.release()
    assert [(each.in_flight, each.booked, each.room.taken) for each in (silent, good)] == [(0, 0, 0)] * 2
    assert (call.asked, pool.retries, pool.hedges) == ([silent.address, good.address], 0, 1)
    await pool.aclose()


async def test_a_slow_call_is_not_made_twice_where_nobody_joined() -> None:
    slow, other = replica("127.0.0.1:1"), newcomer("127.0.0.1:2")
    pool, call = Pool([slow, other], calls_per_replica=1), Hanging(slow)
    slot = pool.book("digits", 1)
    assert slot is not None
    slot.move(slow)
    task = asyncio.create_task(pool.call("digits", 1, call, deadline=time.monotonic() + 60, slot=slot))
    done, _ = await asyncio.wait([task], timeout=0.3)
    assert (done, call.asked) == (set(), [slow.address])
    task.cancel()
    await asyncio.wait([task])
    assert slow.in_flight == 0
    await pool.aclose()


async def answered_by(found: Replica, model: str = "digits") -> None:
    """Make it answer a call for the model now."""

    async def answer(_api: TensorFlowServing, _timeout_s: float) -> str:
        return "answer"

    now = time.monotonic
    await found.run(model, 1, answer, now() + 60, now)


async def begun_on(late: Replica, pool: Pool) -> tuple[asyncio.Task[str], Hanging, Slot]:
    """Make a call that hangs on `late`, and that other replicas would answer at once."""
    call, slot = Hanging(late), Slot(late, "digits", 1)
    call.may_answer.set()
    task = asyncio.create_task(pool.call("digits", 1, call, deadline=time.monotonic() + 60, slot=slot))
    await until(lambda: bool(call.asked))
    return task, call, slot


async def test_a_call_on_one_that_hangs_is_answered_by_one_that_answers_others() -> None:
    silent, good, third = (newcomer(f"127.0.0.1:{port}") for port in (1, 2, 3))
    pool = Pool([silent, good, third], calls_per_replica=1)
    task, call, slot = await begun_on(silent, pool)
    await answered_by(good)
    async with asyncio.timeout(10):
        assert await task == good.address, "of the third one nobody knows whether it hangs, too"
    slot.release()
    assert (call.asked, pool.hedges) == ([silent.address, good.address], 1)
    assert not silent.breaker.allows(time.monotonic()), "or else the next call would go there"
    assert [(each.in_flight, each.booked, each.room.taken) for each in pool.replicas] == [(0, 0, 0)] * 3
    await pool.aclose()


@pytest.mark.parametrize("told", ["it answers", "another model's", "it is slow", "the other is slow"])
async def test_one_that_may_only_be_slow_is_waited_for(told: str) -> None:
    slow, other = newcomer("127.0.0.1:1"), newcomer("127.0.0.1:2")
    pool = Pool([slow, other], calls_per_replica=1)
    task, call, slot = await begun_on(slow, pool)
    if told == "it answers":
        await answered_by(slow)
    await answered_by(other, "flowers" if told == "another model's" else "digits")
    slow.latency_s, other.latency_s = {"it is slow": (30.0, 0.0), "the other is slow": (0.0, 30.0)}.get(
        told, (0.0, 0.0)
    )
    done, _ = await asyncio.wait([task], timeout=0.3)
    assert (done, call.asked) == (set(), [slow.address])
    task.cancel()
    await asyncio.wait([task])
    slot.release()
    await pool.aclose()


async def test_a_refusal_for_want_of_room_is_no_sign_of_life_and_one_of_the_callers_fault_is() -> None:
    found, now = replica(), time.monotonic

    def failing(error: SluiceError) -> Any:
        async def fail(_api: TensorFlowServing, _timeout_s: float) -> str:
            raise error

        return found.run("digits", 1, fail, now() + 60, now)

    with pytest.raises(Overloaded):
        await failing(Overloaded("Server Threadpool Exhausted"))
    assert found.answered_at == -math.inf
    with pytest.raises(InvalidInput):
        await failing(InvalidInput("no such signature"))
    assert found.answered_at > 0.0
    await found.api.close()


async def test_one_that_joins_is_not_asked_beyond_the_budget_of_retries() -> None:
    silent = replica("127.0.0.1:1", limit=1000.0)
    now = 7.0
    pool, call = Pool([silent], calls_per_replica=1, clock=lambda: now), Hanging(silent)
    tasks = [asyncio.create_task(pool.call("digits", 1, call, deadline=60.0)) for _ in range(100)]
    await until(lambda: len(call.asked) == 100)
    good = replica("127.0.0.1:2", limit=1000.0)
    good.reachable_since = now = 8.0
    pool.join(good)
    await until(lambda: good.in_flight >= 29)
    await asyncio.wait(tasks, timeout=0.2)
    assert 29 <= good.in_flight <= 30  # a fifth of the calls, and the reserve
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert [silent.in_flight, good.in_flight, good.room.taken] == [0, 0, 0]
    await pool.aclose()


async def test_batches_behind_a_hung_call_with_tensors_move_to_a_replica_that_joins() -> None:
    """Its replica says what it has, as ever, but computes nothing any more."""
    hangs = False

    async def maybe_hang(_request: Any) -> None:
        if hangs:
            await asyncio.Event().wait()

    async with (
        running(FakeReplica(before_predict=maybe_hang)) as silent,
        running(FakeReplica()) as good,
        gateway_over(silent) as (up, client),
    ):
        for _ in range(6):  # so that it is known how long an image takes
            assert (await client.post(PATH, content=grey_png(200), headers=PNG)).status_code == 200
        hangs, before = True, len(silent.batches)
        tensors = asyncio.create_task(client.post("/v1/models/digits:predict", json=TENSORS))
        await until(lambda: len(silent.batches) == before + 1)
        image = asyncio.create_task(client.post(PATH, content=grey_png(200), headers=PNG))
        await until(lambda: len(silent.batches) == before + 2)
        up.pool.join(Replica(TensorFlowServing(good.address)))
        async with asyncio.timeout(15):  # and a deadline is thirty seconds away
            assert [(await each).status_code for each in (tensors, image)] == [200, 200]
        assert len(good.batches) == 2

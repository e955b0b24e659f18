"""What a pool does about replicas that are new, silent or gone; how many retries that may cost."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import pytest

from serving import errors
from serving.backends import budget, members
from serving.backends.breaker import THRESHOLD, Breaker
from serving.backends.budget import RetryBudget
from serving.backends.pool import Pool, choose
from serving.backends.replica import RAMP_S, Patience
from serving.backends.tfserving import TensorFlowServing, VersionStatus
from tests.support.fake_replica import FakeReplica, running, until
from tests.support.replicas import places, replica


async def answered(_api: Any, _timeout_s: float) -> str:
    return "answer"


async def call(pool: Pool, what: Any, **options: Any) -> Any:
    return await pool.call("digits", 1, what, deadline=time.monotonic() + 20, **options)


def test_retries_are_a_share_of_calls_and_a_reserve_for_rare_ones() -> None:
    funds = RetryBudget()
    reserve = sum(funds.spend(now=0.0) for _ in range(1000))
    assert reserve == budget.RESERVE_PER_S
    for _ in range(50):
        funds.earn()
    earned = sum(funds.spend(now=0.0) for _ in range(1000))
    assert earned == pytest.approx(50 * budget.SHARE, abs=1)
    assert sum(funds.spend(now=0.5) for _ in range(1000)) == budget.RESERVE_PER_S / 2
    for _ in range(100_000):
        funds.earn()
    assert sum(funds.spend(now=0.5) for _ in range(1000)) == budget.MOST


async def test_a_sick_fleet_gets_few_more_calls_than_callers_make() -> None:
    attempts = 0

    async def full(_api: Any, _timeout_s: float) -> None:
        nonlocal attempts
        attempts += 1
        raise errors.Overloaded("full")

    pool = Pool([replica(f"127.0.0.1:{port}") for port in (1, 2, 3)], calls_per_replica=2, clock=lambda: 7.0)
    for _ in range(500):
        with pytest.raises(errors.Overloaded):
            await pool.call("digits", 1, full, deadline=8.0)
    least = 500 * (1 + budget.SHARE)
    assert least <= attempts <= least + budget.RESERVE_PER_S + 1
    await pool.aclose()


async def test_a_call_that_waits_is_not_made_on_a_replica_that_leaves_meanwhile() -> None:
    leaving, staying = replica("127.0.0.1:1", limit=1.0), replica("127.0.0.1:2", limit=1.0)
    pool = Pool([leaving, staying], calls_per_replica=2)
    asked: list[str] = []
    ends = {leaving.address: asyncio.Event(), staying.address: asyncio.Event()}

    async def held(api: TensorFlowServing, _timeout_s: float) -> str:
        asked.append(api.address)
        await ends[api.address].wait()
        return api.address

    first = [asyncio.create_task(call(pool, held)) for _ in range(2)]
    await until(lambda: sorted(asked) == [leaving.address, staying.address])
    third = asyncio.create_task(call(pool, held))
    await until(lambda: len(pool._waiting) == 1)
    pool.leave(leaving.address)
    ends[leaving.address].set()
    await until(lambda: sum(each.done() for each in first) == 1)
    ends[staying.address].set()
    assert await third == staying.address
    assert asked[2:] == [staying.address]
    await asyncio.gather(*first)
    await pool.aclose()


async def test_a_replica_that_comes_gets_its_share_little_by_little() -> None:
    now = 100.0
    old, new = replica("127.0.0.1:1"), replica("127.0.0.1:2")
    pool = Pool([old, new], calls_per_replica=10, clock=lambda: now)
    assert places(pool, "digits", 1) == 20
    new.went()
    new.came(now)
    new.versions = {"digits": {1: VersionStatus("AVAILABLE")}}
    assert places(pool, "digits", 1) == 11
    old.in_flight = 5
    assert choose([old, new], random.Random(1), now) is old
    now += RAMP_S / 2
    assert places(pool, "digits", 1) == 15
    assert choose([old, new], random.Random(1), now) is new
    now += RAMP_S
    assert places(pool, "digits", 1) == 20
    old.reachable_since = new.reachable_since  # nobody is new among those of one age
    now = new.reachable_since
    assert places(pool, "digits", 1) == 20
    await pool.aclose()


async def test_places_are_booked_and_given_back() -> None:
    one, two = replica("127.0.0.1:1"), replica("127.0.0.1:2")
    pool = Pool([one, two], calls_per_replica=2)
    slots = [pool.book("digits", 1) for _ in range(4)]
    assert [one.booked, two.booked] == [2, 2]
    assert pool.book("digits", 1) is None
    assert slots[0] is not None
    slots[0].release()
    slots[0].release()
    assert one.booked + two.booked == 3
    nowhere = pool.book("digits", 2)
    assert nowhere is not None  # its callers must hear that nobody has the version
    assert nowhere.replica is None
    await pool.aclose()


async def test_a_place_is_behind_batches_of_its_own_version_only() -> None:
    """Else who has one slow batch somewhere would wait for it while others keep every replica busy."""
    only = replica()
    only.versions["numbers"] = only.versions["digits"]
    pool = Pool([only], calls_per_replica=4)
    digits, numbers, more = (pool.book(name, 1) for name in ("digits", "numbers", "digits"))
    assert digits is not None
    assert numbers is not None
    assert more is not None
    assert [digits.behind, numbers.behind, more.behind] == [True, False, True]
    digits.release()
    assert [numbers.behind, more.behind] == [False, False]
    numbers.release()
    more.release()
    assert (only.booked, dict(only.booked_of)) == (0, {})
    await pool.aclose()


async def test_each_model_has_a_place_however_many_batches_another_has() -> None:
    only = replica()
    only.versions["numbers"] = {version: VersionStatus("AVAILABLE") for version in (1, 2)}
    pool = Pool([only], calls_per_replica=2)
    heavy = [pool.book("digits", 1) for _ in range(3)]
    assert heavy[2] is None
    light = pool.book("numbers", 1)
    assert light is not None
    assert pool.book("numbers", 1) is None
    assert pool.book("numbers", 2) is None, "a version that is let in shares with the one that serves"
    light.release()
    assert pool.book("numbers", 2) is not None
    await pool.aclose()


async def test_a_call_is_not_overdue_while_an_older_one_may_be_computed_before_it() -> None:
    busy, ends, asked = replica(), [asyncio.Event(), asyncio.Event()], [asyncio.Event(), asyncio.Event()]

    def hang(index: int) -> Any:
        async def until_it_ends(_api: Any, _timeout_s: float) -> None:
            asked[index].set()
            await ends[index].wait()

        return until_it_ends

    def run(index: int, patience: Patience | None) -> asyncio.Task[None]:
        deadline = time.monotonic() + 60
        return asyncio.create_task(busy.run("digits", 1, hang(index), deadline, time.monotonic, patience))

    older = run(0, None)
    await asked[0].wait()
    younger = run(1, Patience(0.02, lambda: True))
    await asked[1].wait()
    done, _ = await asyncio.wait([younger], timeout=0.2)
    assert not done
    ends[0].set()
    await older
    with pytest.raises(errors.Unavailable, match="does not answer"):
        await younger
    await busy.api.close()


async def test_a_silent_replica_is_given_up_and_another_answers_in_its_place() -> None:
    silent, good = replica("127.0.0.1:1"), replica("127.0.0.1:2")
    pool = Pool([silent, good], calls_per_replica=2)

    async def hang(api: TensorFlowServing, _timeout_s: float) -> str:
        if api.address == silent.address:
            await asyncio.Event().wait()
        return "answer"

    good.in_flight = 5
    slot = pool.book("digits", 1)
    good.in_flight = 0
    assert slot is not None
    assert slot.replica is silent
    assert await call(pool, hang, slot=slot, patience_s=0.05) == "answer"
    assert slot.replica is good
    assert [silent.booked, good.booked, silent.in_flight] == [0, 1, 0]
    assert not silent.breaker.allows(time.monotonic())
    await pool.aclose()


async def test_the_only_replica_gets_the_time_that_it_needs() -> None:
    only = replica()
    pool = Pool([only], calls_per_replica=2)

    async def slow(_api: Any, _timeout_s: float) -> str:
        await asyncio.sleep(0.1)
        return "answer"

    assert await call(pool, slow, patience_s=0.01) == "answer"
    assert only.breaker == Breaker()
    await pool.aclose()


@pytest.mark.parametrize("by", ["patience", "hedge"])
async def test_who_waits_for_the_only_replica_is_answered_by_one_that_joins(by: str) -> None:
    silent, good = replica("127.0.0.1:1"), replica("127.0.0.1:2")
    pool = Pool([silent], calls_per_replica=2)
    asked: list[str] = []

    async def hang(api: TensorFlowServing, _timeout_s: float) -> str:
        asked.append(api.address)
        if api.address == silent.address:
            await asyncio.Event().wait()
        return "answer"

    slot = pool.book("digits", 1)
    assert slot is not None
    options = {"patience": {"patience_s": 0.05}, "hedge": {"hedge_after_s": 0.2}}[by]
    task = asyncio.create_task(call(pool, hang, slot=slot, **options))
    done, _ = await asyncio.wait([task], timeout=0.15)
    assert not done, "there is nobody else"
    assert silent.breaker == Breaker()
    pool.join(good)
    async with asyncio.timeout(10):
        assert await task == "answer"
    assert asked == [silent.address, good.address]
    assert (pool.retries, pool.hedges) == ((1, 0) if by == "patience" else (0, 1))
    assert silent.breaker.allows(time.monotonic()) is (by == "hedge")
    await pool.aclose()


async def test_calls_on_a_replica_that_stopped_answering_are_made_elsewhere() -> None:
    silent, good = replica("127.0.0.1:1"), replica("127.0.0.1:2")
    pool = Pool([silent, good], calls_per_replica=2)
    entered = asyncio.Event()

    async def hang(api: TensorFlowServing, _timeout_s: float) -> str:
        if api.address == silent.address:
            entered.set()
            await asyncio.Event().wait()
        return "answer"

    good.in_flight = 5
    pending = asyncio.create_task(call(pool, hang))
    await entered.wait()
    silent.went()
    silent.give_up()
    assert await pending == "answer"
    await pool.aclose()


async def test_a_call_that_is_given_up_may_take_a_while_to_end() -> None:
    """Its patience ends meanwhile, and has nothing to add."""
    only, entered, seen = replica(), asyncio.Event(), []
    patience = Patience(0.05, lambda: True)
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: seen.append(context))

    async def slow_to_end(_api: Any, _timeout_s: float) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.1)

    asked = asyncio.create_task(
        only.run("digits", 1, slow_to_end, time.monotonic() + 20, time.monotonic, patience)
    )
    await entered.wait()
    only.give_up()
    with pytest.raises(errors.Unavailable, match="does not answer"):
        await asked
    assert seen == []
    await only.api.close()


async def test_the_only_replica_is_asked_again_after_a_broken_connection() -> None:
    only = replica()
    pool = Pool([only], calls_per_replica=2)
    attempts = 0

    async def broken_once(_api: Any, _timeout_s: float) -> str:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise errors.Unavailable("GOAWAY")
        return "answer"

    assert await call(pool, broken_once) == "answer"
    assert (attempts, pool.retries) == (2, 1)
    await pool.aclose()


async def test_what_a_version_fails_is_not_asked_of_the_same_replica_again() -> None:
    pool, attempts = Pool([replica()], calls_per_replica=2), 0

    async def broken(_api: Any, _timeout_s: float) -> None:
        nonlocal attempts
        attempts += 1
        raise errors.Internal("an op of this version fails")

    with pytest.raises(errors.Internal) as caught:
        await call(pool, broken)
    assert (attempts, caught.value.retry_after_s) == (1, None), "nor is it worth another try later"
    with pytest.raises(errors.DeadlineExceeded, match="before a replica was free"):
        await pool.call("digits", 1, broken, deadline=time.monotonic() - 0.1)
    assert attempts == 1
    await pool.aclose()


async def test_a_replica_whose_room_is_used_up_is_tried_out_with_more() -> None:
    only = replica(limit=2.0)
    pool = Pool([only], calls_per_replica=2)

    async def soon(_api: Any, _timeout_s: float) -> None:
        await asyncio.sleep(0)

    for _ in range(10):
        await asyncio.gather(*(call(pool, soon) for _ in range(4)))
    assert 3.0 <= only.room.limit < 10.0
    await pool.aclose()


async def test_the_haste_of_callers_is_no_fault_of_a_replica() -> None:
    only = replica()
    pool = Pool([only], calls_per_replica=2)

    async def late(_api: Any, _timeout_s: float) -> None:
        raise errors.DeadlineExceeded("too little time")

    for _ in range(2 * THRESHOLD):
        with pytest.raises(errors.DeadlineExceeded):
            await call(pool, late)
    assert await call(pool, answered) == "answer"
    await pool.aclose()


def stand_still(for_s: float) -> None:
    """Hold up the event loop."""
    time.sleep(for_s)


async def test_a_process_that_stood_still_blames_no_replica() -> None:
    """Its timers are late then, and so are answers that came meanwhile."""
    pool = Pool([replica("127.0.0.1:1"), replica("127.0.0.1:2")], calls_per_replica=2)
    asked = asyncio.Event()

    async def answer(_api: Any, _timeout_s: float) -> str:
        assert not asked.is_set(), "nobody else is asked"
        asked.set()
        await asyncio.sleep(0.2)
        return "answer"

    task = asyncio.create_task(call(pool, answer, patience_s=0.1))
    await asked.wait()
    stand_still(0.5)
    assert await task == "answer"
    assert [(each.breaker.failures, each.breakers) for each in pool.replicas] == [(0, {}), (0, {})]
    await pool.aclose()


@pytest.mark.parametrize("case", ["stood still", "answers", "silent"])
async def test_a_replica_is_gone_if_it_says_nothing_for_a_while_in_which_it_was_listened_to(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "STATUS_TIMEOUT_S", 0.3)
    end = asyncio.Event()
    pool: Pool

    class Mute(FakeReplica):
        async def status(self, request: Any) -> Any:
            if case == "stood still":
                stand_still(0.6)
            elif case == "answers":
                await call(pool, answered)
            if case != "stood still":
                await end.wait()
            return await super().status(request)

    async with running(Mute()) as fake:
        pool = Pool([replica(fake.address)], calls_per_replica=2)
        await pool.refresh(["digits"])
        found = pool.replicas[0].reachable, pool.availability("digits")
        assert found == ((False, {}) if case == "silent" else (True, {1: 1}))
        end.set()
        await pool.aclose()

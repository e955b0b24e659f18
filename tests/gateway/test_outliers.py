"""Which replicas a pool leaves alone for failing, hanging or refusing, and for which versions only."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Mapping
from typing import Any

import pytest

from serving import errors, protos
from serving.backends import outliers
from serving.backends.breaker import FIRST_PAUSE_S, THRESHOLD
from serving.backends.outliers import Outcomes, is_outlier
from serving.backends.pool import Pool
from serving.backends.replica import FAIR_TIME_S, HASTY_TIME_S, RAMP_S
from serving.backends.tfserving import TensorFlowServing, VersionStatus
from tests.support.fake_replica import FakeReplica, running
from tests.support.replicas import places, replica


async def answered(_api: Any, _timeout_s: float) -> str:
    return "answer"


async def call(pool: Pool, what: Any, **options: Any) -> Any:
    return await pool.call("digits", 1, what, deadline=time.monotonic() + 20, **options)


DIGITS = "digits", 1


def outcomes(good: int, bad: int) -> Outcomes:
    made = Outcomes()
    for index in range(good + bad):
        made.add(DIGITS, failed=index < bad, now=1.0)
    return made


@pytest.mark.parametrize(
    ("counts", "others", "found"),
    [
        ((50, 50), [(100, 0)], True),
        ((50, 50), [(100, 0), (98, 2)], True),
        ((95, 5), [(100, 0)], False),  # a little worse is not an outlier
        ((50, 50), [(50, 50)], False),  # everybody fails: it is not the replica
        ((8, 12), [(60, 40)], False),  # and may have had bad luck
        ((2, 18), [(60, 40)], True),
        ((5, 10), [(100, 0)], False),  # too few calls
        ((50, 50), [(5, 0)], False),  # nobody to compare with
        ((50, 50), [], False),
    ],
)
def test_an_outlier_fails_much_more_often_than_the_others(
    counts: tuple[int, int], others: list[tuple[int, int]], found: bool
) -> None:
    assert is_outlier(outcomes(*counts), [outcomes(*each) for each in others], DIGITS, now=2.0) is found


Counts = tuple[int, int]
"""How many calls for a version were answered, and how many failed."""


def of_models(counts: Mapping[int, Counts]) -> Outcomes:
    """The outcomes of a replica with version 1 of numbered models."""
    made = Outcomes()
    for model, (good, bad) in counts.items():
        for index in range(good + bad):
            made.add((f"model-{model}", 1), failed=index < bad, now=1.0)
    return made


def judged(own: Mapping[int, Counts], *others: Mapping[int, Counts]) -> bool:
    replica = of_models(own)
    return is_outlier(replica, [of_models(each) for each in others], ("model-0", 1), now=2.0)


def test_a_replica_is_judged_by_its_calls_for_many_little_used_models_together() -> None:
    fifty = range(50)
    well = dict.fromkeys(fifty, (5, 0))
    assert judged(dict.fromkeys(fifty, (3, 2)), well, well)
    assert not judged(dict.fromkeys(fifty, (5, 0)), well, well)
    assert not judged(dict.fromkeys(range(6), (1, 2)), well, well), "eighteen calls say nothing"
    assert not judged({0: (0, 200)}, {0: (5, 0)}), "nor do five of the others"
    assert not judged(dict.fromkeys(fifty, (3, 2))), "nor does being alone"


def test_of_a_handful_of_calls_for_each_model_the_next_may_fail_yet() -> None:
    well = dict.fromkeys(range(20), (2, 0))
    assert not judged(dict.fromkeys(range(4), (2, 0)) | dict.fromkeys(range(4, 20), (1, 1)), well)
    assert judged(dict.fromkeys(range(20), (1, 1)), well)


def test_models_that_fail_everywhere_make_no_replica_an_outlier_whatever_else_it_has() -> None:
    """It has most of the calls for them, or is even the only one that has them."""
    well, broken = dict.fromkeys(range(25), (5, 0)), range(25, 50)
    shared = well | dict.fromkeys(broken, (2, 10))
    assert not judged(shared, well | dict.fromkeys(broken, (1, 5)), well)
    assert not judged(well | dict.fromkeys(broken, (0, 15)), well, well)
    of_its_own = dict.fromkeys(range(25), (2, 3)) | dict.fromkeys(broken, (15, 0))
    assert judged(of_its_own, well, well), "and models that it alone has well excuse nothing"


def test_no_replica_is_an_outlier_by_chance() -> None:
    rng = random.Random(7)
    found = 0
    for _ in range(300):
        rates = [rng.choice([1.0, 0.99, 0.9, 0.5]) for _ in range(30)]
        replicas = [
            {
                model: (good := sum(rng.random() < rate for _ in range(calls)), calls - good)
                for model, rate in enumerate(rates)
                if (calls := rng.randrange(12))
            }
            for _ in range(3)
        ]
        found += judged(*replicas)
    assert found == 0


def test_judging_many_models_together_is_not_done_at_each_failure() -> None:
    replica, well = Outcomes(), of_models(dict.fromkeys(range(400), (1, 0)))
    for model in range(400):
        replica.add((f"model-{model}", 1), failed=True, now=1.0)
        if is_outlier(replica, [well], ("another", 1), now=1.0):
            break
    assert outliers.LEAST_CALLS < model < 60
    found = of_models(dict.fromkeys(range(80), (1, 0)))
    due = 0
    for _ in range(400):
        due += found.is_due()
        found.add(("model-0", 1), failed=True, now=1.0)
    assert due == 400 // 10 - 1


def test_most_of_a_fleet_stays_in_use_whatever_happens() -> None:
    ejected = outcomes(0, 100)
    ejected.eject(now=1.0)
    assert not is_outlier(outcomes(50, 50), [ejected, outcomes(100, 0)], DIGITS, now=2.0)
    others = [ejected, outcomes(100, 0), outcomes(100, 0)]
    assert is_outlier(outcomes(50, 50), others, DIGITS, now=2.0)


def test_old_outcomes_are_forgotten_and_ejections_grow() -> None:
    found = outcomes(0, 100)
    assert found.success_rate(DIGITS, now=2.0) == (0.0, 100)
    assert found.success_rate(DIGITS, now=2.0 + outliers.WINDOW_S) == (0.0, 100)
    assert found.versions(now=2.0 + outliers.WINDOW_S) == {DIGITS}
    assert found.success_rate(DIGITS, now=2.0 + 2 * outliers.WINDOW_S) is None
    until = []
    for _ in range(20):
        found.eject(now=0.0)
        until.append(found.ejected_until)
    assert until[:2] == [outliers.FIRST_EJECTION_S, 2 * outliers.FIRST_EJECTION_S]
    assert until[-1] == outliers.MAX_EJECTION_S
    well = until[-1] + outliers.WELL_AFTER_S
    found.eject(now=well)
    assert found.ejected_until == well + outliers.FIRST_EJECTION_S


async def test_a_replica_that_fails_every_other_call_is_left_alone_and_comes_back() -> None:
    now = 100.0
    flaky, good = replica("127.0.0.1:1"), replica("127.0.0.1:2")
    pool = Pool([flaky, good], calls_per_replica=2, clock=lambda: now, rng=random.Random(3))
    turns = {flaky.address: 0, good.address: 0}

    async def sometimes(api: TensorFlowServing, _timeout_s: float) -> None:
        turns[api.address] += 1
        if api.address == flaky.address and turns[api.address] % 2:
            raise errors.Internal("wrong")

    while flaky.outcomes.ejected_until == 0.0:
        now += 0.1
        await pool.call("digits", 1, sometimes, deadline=now + 1)
        # Either may seem the faster, so that both are called.
        flaky.latency_s, good.latency_s = random.Random(sum(turns.values())).sample([0.001, 0.002], 2)
        assert sum(turns.values()) < 200
    assert flaky.outcomes.ejected_until > now
    assert all(each.failures < THRESHOLD for each in flaky.breakers.values())
    assert places(pool, "digits", 1) == 2
    now += outliers.FIRST_EJECTION_S + RAMP_S
    assert places(pool, "digits", 1) == 4
    await pool.aclose()


async def test_a_replica_that_fails_every_other_call_of_fifty_models_is_left_alone() -> None:
    now = 100.0
    flaky, good = replica("127.0.0.1:1"), replica("127.0.0.1:2")
    models = [f"model-{number}" for number in range(50)]
    for each in (flaky, good):
        each.versions = {model: {1: VersionStatus("AVAILABLE")} for model in models}
    pool = Pool([flaky, good], calls_per_replica=2, clock=lambda: now, rng=random.Random(3))
    turns, luck = 0, random.Random(5)

    async def sometimes(api: TensorFlowServing, _timeout_s: float) -> None:
        nonlocal turns
        turns += api.address == flaky.address
        if api.address == flaky.address and turns % 2:
            raise errors.Internal("wrong")

    for _ in range(15):
        for model in models:
            now += 0.01
            await pool.call(model, 1, sometimes, deadline=now + 1)
            flaky.latency_s, good.latency_s = luck.sample([0.001, 0.002], 2)
    assert flaky.outcomes.ejections >= 1
    assert good.outcomes.ejections == 0
    await pool.aclose()


async def test_a_replica_without_memory_is_left_alone_though_it_is_quick_to_say_so() -> None:
    """It is idle, and so the least loaded: without that most calls would be made there, and fail."""
    now = 100.0
    small, good = replica("127.0.0.1:1"), replica("127.0.0.1:2")
    pool = Pool([small, good], calls_per_replica=2, clock=lambda: now, rng=random.Random(3))
    failed, good.in_flight = 0, 1

    async def answer(api: TensorFlowServing, _timeout_s: float) -> None:
        if api.address == small.address:
            raise errors.Overloaded("OOM when allocating tensor with shape[32,64,112,112]")

    for _ in range(200):
        now += 0.01
        try:
            await pool.call("digits", 1, answer, deadline=now + 1)
        except errors.Overloaded:
            failed += 1
    assert small.outcomes.ejected_until > now
    assert failed <= outliers.LEAST_CALLS
    await pool.aclose()


async def test_a_replica_that_lets_every_other_call_run_out_of_time_is_left_alone() -> None:
    now = 100.0
    slow, good = replica("127.0.0.1:1"), replica("127.0.0.1:2")
    pool = Pool([slow, good], calls_per_replica=2, clock=lambda: now, rng=random.Random(3))
    turns = {slow.address: 0, good.address: 0}

    async def sometimes(api: TensorFlowServing, timeout_s: float) -> None:
        nonlocal now
        turns[api.address] += 1
        if api.address == slow.address and turns[api.address] % 2:
            now += timeout_s
            raise errors.DeadlineExceeded("slow")

    while slow.outcomes.ejected_until == 0.0:
        now += 0.01
        with contextlib.suppress(errors.DeadlineExceeded):
            await pool.call("digits", 1, sometimes, deadline=now + FAIR_TIME_S)
        slow.latency_s, good.latency_s = random.Random(sum(turns.values())).sample([0.001, 0.002], 2)
        assert sum(turns.values()) < 200
    assert all(each.failures < THRESHOLD for each in slow.breakers.values())
    await pool.aclose()


async def test_a_version_that_fails_takes_no_other_version_along() -> None:
    one, two = replica("127.0.0.1:1"), replica("127.0.0.1:2")
    for each in (one, two):
        each.versions["digits"][2] = VersionStatus("AVAILABLE")
    pool = Pool([one, two], calls_per_replica=2)
    asked = 0

    async def broken(_api: Any, _timeout_s: float) -> None:
        nonlocal asked
        asked += 1
        raise errors.Internal("an op of this version fails")

    deadline = time.monotonic() + 60
    for calls in range(1, 4 * THRESHOLD):
        with pytest.raises(errors.Internal, match="an op of this version"):  # and not that nobody is there
            await pool.call("digits", 2, broken, deadline=deadline)
        assert asked >= calls
    assert places(pool, "digits", 1) == 4
    assert await call(pool, answered) == "answer"
    await pool.aclose()


async def test_a_version_that_fails_on_one_replica_is_asked_of_the_other_and_tried_again() -> None:
    now = 100.0
    sick, well = replica("127.0.0.1:1"), replica("127.0.0.1:2")
    pool = Pool([sick, well], calls_per_replica=2, clock=lambda: now)
    asked: list[str] = []
    failing = True

    async def sometimes(api: TensorFlowServing, _timeout_s: float) -> None:
        asked.append(api.address)
        if failing and api.address == sick.address:
            raise errors.Internal("a cosmic ray")

    well.in_flight = 5  # the sick one looks idle
    for _ in range(20):
        now += 0.001
        await pool.call("digits", 1, sometimes, deadline=now + 1)
    assert asked.count(sick.address) == THRESHOLD
    assert sick.left_alone(now)
    now += FIRST_PAUSE_S
    await pool.call("digits", 1, sometimes, deadline=now + 1)
    assert asked.count(sick.address) == THRESHOLD + 1
    failing = False
    now += 2 * FIRST_PAUSE_S
    for _ in range(10):
        await pool.call("digits", 1, sometimes, deadline=now + 1)
    assert asked.count(sick.address) == THRESHOLD + 11
    assert not sick.left_alone(now)
    await pool.aclose()


async def test_who_alone_has_a_version_that_fails_keeps_its_share_of_the_others() -> None:
    now = 100.0
    one, two = replica("127.0.0.1:1"), replica("127.0.0.1:2")
    one.versions["digits"][2] = VersionStatus("AVAILABLE")
    pool = Pool([one, two], calls_per_replica=2, clock=lambda: now)

    async def broken(_api: Any, _timeout_s: float) -> None:
        raise errors.Internal("an op of this version fails")

    for _ in range(3 * outliers.LEAST_CALLS):
        now += 0.01
        await pool.call("digits", 1, answered, deadline=now + 1)
        with pytest.raises(errors.Internal):
            await pool.call("digits", 2, broken, deadline=now + 1)
    assert places(pool, "digits", 1) == 4
    await pool.aclose()


async def test_a_new_config_reaches_every_replica_that_is_there() -> None:
    config = protos.ModelServerConfig()
    config.model_config_list.config.add(name="numbers")
    async with running(FakeReplica()) as one, running(FakeReplica()) as other:
        addresses = ("127.0.0.1:1", one.address, other.address)
        pool = Pool([replica(each) for each in addresses], calls_per_replica=2)
        with pytest.raises(errors.Unavailable):
            await pool.reload_config(config, 20.0)
        assert [one.versions, other.versions] == [{"numbers": {1}}] * 2
        pool.leave("127.0.0.1:1")
        await pool.reload_config(config, 20.0)
        await pool.aclose()


@pytest.mark.parametrize("timeout_s", [0.3, 0.05])
@pytest.mark.parametrize("told_by", ["the replica", "the caller's timer"])
async def test_a_replica_that_hangs_is_left_alone_by_hasty_callers_too(
    told_by: str, timeout_s: float
) -> None:
    """It says that it is well, and nobody has the patience to tell: other replicas answer in time.

    The most hasty ones tell nothing: such times are those of a replica that is farther away, say.
    """
    now = 100.0
    hung, good = replica("127.0.0.1:1"), replica("127.0.0.1:2")
    pool = Pool([hung, good], calls_per_replica=2, clock=lambda: now, rng=random.Random(3))
    failed, others = 0, random.Random(5)

    async def hang(api: TensorFlowServing, timeout_s: float) -> None:
        nonlocal now
        if api.address == hung.address:
            now += timeout_s
            if told_by == "the replica":
                raise errors.DeadlineExceeded("slow")
            raise asyncio.CancelledError

    for _ in range(40 * outliers.LEAST_CALLS):
        good.in_flight = others.choice([0, 1])  # else the slower one would never be chosen
        try:
            await pool.call("digits", 1, hang, deadline=now + timeout_s)
        except (errors.DeadlineExceeded, asyncio.CancelledError):
            failed += 1
            now -= 0.8 * timeout_s  # there are several such callers at once
        if hung.outcomes.ejected_until > now:
            break
    if timeout_s > HASTY_TIME_S:
        assert hung.outcomes.ejected_until > now
        assert failed <= outliers.LEAST_CALLS + 5
    else:
        assert hung.outcomes.ejected_until == 0.0
        assert failed > outliers.LEAST_CALLS
    await pool.aclose()

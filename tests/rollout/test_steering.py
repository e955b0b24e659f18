"""What a gateway counts of its own traffic, and what it takes for no evidence."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

import pytest

from serving import errors
from serving.rollout.steering import Steering
from serving.routing import Route, Split
from tests.support.fake_replica import until

STABLE, CANDIDATE = Route(1, "stable", None), Route(2, "candidate", None)
COPIED = Route(1, "stable", 2)


def steering(split: Split | None = None, clock: Callable[[], float] = time.monotonic) -> Steering:
    found = Steering(clock=clock)
    found.set_split("digits", split or Split(1, 2, 0.5, salt="x"), None)
    return found


def test_a_baseline_takes_fifty_answers_of_stable_in_time() -> None:
    found = steering()
    for _ in range(49):
        found.answered("digits", STABLE, 0.02, late=False)
    for _ in range(100):
        found.answered("digits", CANDIDATE, 3.0, late=False)
        found.answered("digits", STABLE, 9.0, late=True)
    assert found.stable_p99_s("digits") is None
    found.answered("digits", STABLE, 0.02, late=False)
    assert found.stable_p99_s("digits") == pytest.approx(0.02)
    found.set_split("digits", Split(1, 3, 0.1, salt="y"), None)
    assert found.stable_p99_s("digits") is not None, "stable is the same one"
    found.set_split("digits", Split(2), None)
    assert found.stable_p99_s("digits") is None, "another version serves"
    assert found.stable_p99_s("flowers") is None


def test_a_baseline_is_of_the_last_five_thousand() -> None:
    found = steering()
    for duration_s in [3.0] * 5000 + [0.02] * 5000:
        found.answered("digits", STABLE, duration_s, late=False)
    assert found.stable_p99_s("digits") == pytest.approx(0.02)


async def answer(api: object, timeout_s: float) -> str:
    return "answer"


async def once(call: Callable[[object, float], Awaitable[str]]) -> str:
    return await call(None, 2.0)


async def test_a_call_of_a_version_that_is_neither_is_no_evidence() -> None:
    found = steering()
    for version in (1, 2, 7):
        await found.call("digits", version, answer, once)
    await found.call("flowers", 1, answer, once)
    assert found.counts("digits") == {"calls/1": 1.0, "calls/2": 1.0}
    assert found.counts("flowers") == {}


@pytest.mark.parametrize("error", [errors.DeadlineExceeded("too late"), asyncio.CancelledError()])
@pytest.mark.parametrize(
    ("given_s", "took_s", "failed"),
    [(2.0, 2.0, True), (2.0, 1.995, True), (2.0, 1.9, False), (0.9, 0.9, False), (1.0, 1.0, True)],
)
async def test_a_call_fails_at_its_deadline_if_it_had_a_second(
    error: BaseException, given_s: float, took_s: float, failed: bool
) -> None:
    now = 0.0

    async def hang(api: object, timeout_s: float) -> str:
        nonlocal now
        now += took_s
        raise error

    async def make(call: Callable[[object, float], Awaitable[str]]) -> str:
        return await call(None, given_s)

    found = steering(clock=lambda: now)
    with pytest.raises(type(error)):
        await found.call("digits", 2, hang, make)
    assert found.counts("digits") == ({"calls/2": 1.0, "failed/2": 1.0} if failed else {})


async def test_a_fault_is_not_forgotten_though_the_next_attempt_is_left_in_haste() -> None:
    outcomes: list[BaseException] = [errors.Internal("the model failed"), asyncio.CancelledError()]

    async def fail(api: object, timeout_s: float) -> str:
        raise outcomes.pop(0)

    async def twice(call: Callable[[object, float], Awaitable[str]]) -> str:
        with contextlib.suppress(errors.Internal):
            await call(None, 2.0)
        return await call(None, 2.0)

    found = steering()
    with pytest.raises(asyncio.CancelledError):
        await found.call("digits", 2, fail, twice)
    assert found.counts("digits") == {"calls/2": 1.0, "failed/2": 1.0}


@pytest.mark.parametrize("ended", [False, True])
async def test_a_copy_that_is_answered_after_its_rollout_shows_nothing(ended: bool) -> None:
    gate = asyncio.Event()

    async def ask(version: int) -> list[str]:
        await gate.wait()
        return ["seven"]

    async with steering(Split(1, 2, 0.0, 1.0, "x")) as found:
        list(found.copy("digits", COPIED, ["seven"], ask))
        if ended:
            found.set_split("digits", Split(1), None)
        gate.set()
        await until(lambda: not found._copies)
    assert (found.counts("digits") == {}) == ended


@pytest.mark.parametrize(("keyed", "counted"), [(True, []), (False, ["routed/stable/0.25"])])
async def test_a_request_with_a_key_of_its_caller_s_says_nothing_of_the_split(
    keyed: bool, counted: list[str]
) -> None:
    found = steering(Split(1, 2, 0.25, salt="x"))
    keys = (f"a caller {number}" for number in range(100))
    stable = next(
        key for key in keys if (route := found.route("digits", key, keyed=True)) and route.version == 1
    )
    found.route("digits", stable, keyed=keyed)
    assert list(found.counts("digits")) == counted
    assert found.route("flowers", stable, keyed=False) is None

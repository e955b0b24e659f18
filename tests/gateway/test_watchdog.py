"""An event loop that stands still is noticed, with what it stood at."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import cast

import pytest
from structlog.testing import capture_logs

from serving.telemetry.watchdog import Watchdog
from tests.support.fake_replica import FakeReplica, running, until
from tests.support.gateways import counted, gateway_over


def compute_on_the_loop(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(100))


async def test_a_blocked_loop_is_told_with_its_stack() -> None:
    stalls: list[float] = []
    threads = set(threading.enumerate())
    with capture_logs() as lines:
        async with Watchdog(stalls.append, threshold_s=0.3, interval_s=0.02).watching():
            await asyncio.sleep(0.1)
            compute_on_the_loop(1.5)
            await until(lambda: bool(stalls))
    assert stalls[0] > 0.3
    told = [line for line in lines if "blocked here" in line["event"]]
    assert len([line for line in told if "compute_on_the_loop" in line["stack"]]) == 1, "once in each stall"
    await until(lambda: set(threading.enumerate()) <= threads and len(asyncio.all_tasks()) == 1)


async def test_a_stall_is_as_long_as_the_loop_was_late() -> None:
    stalls: list[float] = []
    clock = iter([10.0, 12.001, 12.003, 12.6])
    watchdog = Watchdog(stalls.append, threshold_s=0.5, interval_s=0.001, clock=lambda: next(clock, 12.6))
    beating = asyncio.create_task(watchdog._beat_steadily())
    await until(lambda: len(stalls) == 2)
    beating.cancel()
    assert stalls == pytest.approx([2.0, 0.596])


class Rounds:
    """In the place of the event that ends the watching: so many rounds, and then the end."""

    def __init__(self, rounds: int) -> None:
        self._left = rounds

    def wait(self, _timeout_s: float) -> bool:
        self._left -= 1
        return self._left < 0


@pytest.mark.parametrize(
    ("times", "told"),
    [
        ([0.1, 0.2], 0),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.7], 1),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.8, 0.9], 1),
        ([5.0], 0),
        ([5.0, 5.1, 5.2], 1),
    ],
    ids=["for a moment", "for long", "for longer", "with the whole process", "alone, after that"],
)
def test_a_loop_that_stands_still_is_told_of_once(times: list[float], told: int) -> None:
    watchdog = Watchdog(lambda _late_s: None, threshold_s=0.5, interval_s=0.1)
    instants = iter([0.0, *times])

    def clock() -> float:
        watchdog._beat = 0.0  # the last beat comes as the watch begins
        return next(instants)

    watchdog._clock, watchdog._end = clock, cast("threading.Event", Rounds(len(times)))
    with capture_logs() as lines:
        watchdog._watch(threading.get_ident())
    assert len(lines) == told


async def test_a_stall_of_a_gateway_is_counted() -> None:
    async with running(FakeReplica()) as fake, gateway_over(fake) as (up, _):
        before = counted(up, "sluice_event_loop_stalls_total")
        await asyncio.sleep(0.2)
        compute_on_the_loop(1.0)
        await until(lambda: counted(up, "sluice_event_loop_stalls_total") > before)
        assert counted(up, "sluice_event_loop_stall_seconds_total") > 0.5

"""An event loop that stands still is noticed, with what it stood at."""

from __future__ import annotations

import asyncio
import time

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
    with capture_logs() as lines:
        async with Watchdog(stalls.append, threshold_s=0.3, interval_s=0.02).watching():
            await asyncio.sleep(0.1)
            compute_on_the_loop(1.5)
            await until(lambda: bool(stalls))
    assert stalls[0] > 0.3
    told = [line for line in lines if "blocked" in line["event"]]
    assert "compute_on_the_loop" in told[0]["stack"]


async def test_a_stall_of_a_gateway_is_counted() -> None:
    async with running(FakeReplica()) as fake, gateway_over(fake) as (up, _):
        before = counted(up, "sluice_event_loop_stalls_total")
        await asyncio.sleep(0.2)
        compute_on_the_loop(1.0)
        await until(lambda: counted(up, "sluice_event_loop_stalls_total") > before)
        assert counted(up, "sluice_event_loop_stall_seconds_total") > 0.5

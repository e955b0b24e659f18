"""What traces cost: `python -m tests.observability.trace_overhead`.

Gateways without traces and with a tenth of them recorded, over one replica, answer rounds of requests that
follow one another, so that a busy machine slows both; the figure is the median of the rounds' ratios. HTTP
is left out: with it the share of the traces would be smaller still. The collector is another program, as it
is anywhere.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from typing import Any

from serving.commands.serve import SAMPLE
from serving.gateway import Gateway
from serving.prediction import ModelRef, RequestContext
from serving.telemetry.tracing import child_of
from tests.observability.test_traces import collecting
from tests.support.fake_replica import FakeReplica, running
from tests.support.gateways import gateway_over

ROUNDS = 21
REQUESTS = 600
AT_ONCE = 8


async def rate(gateway: Gateway, image: bytes) -> float:
    """Requests a second of one round."""

    async def client() -> None:
        for _ in range(REQUESTS // AT_ONCE):
            trace = child_of("", gateway.settings.recorded_share)
            context = RequestContext("id", "http", time.monotonic() + 30, trace=trace)
            with gateway.request(context, ModelRef("digits")):
                await gateway.classify(ModelRef("digits"), [image], None, context)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    return REQUESTS / (time.perf_counter() - began)


async def collect() -> None:
    """Be the collector: say where, and when stdin ends, how many spans came."""
    async with collecting() as collector:
        print(collector.endpoint, flush=True)
        await asyncio.to_thread(sys.stdin.read)
    print(len(collector.spans), flush=True)


async def main() -> None:
    """Measure and print."""
    image = SAMPLE.read_bytes()
    collector = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.observability.trace_overhead", "--collect"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert collector.stdout is not None
    endpoint = (await collector.stdout.readline()).decode().strip()
    async with running(FakeReplica()) as replica:
        traced: dict[str, Any] = {"traces_endpoint": endpoint, "traces_share": 0.1}
        async with gateway_over(replica) as (off, _), gateway_over(replica, **traced) as (on, _):
            for up in (off, on):
                await rate(up.gateway, image)
            pairs = [(await rate(off.gateway, image), await rate(on.gateway, image)) for _ in range(ROUNDS)]
    ratios = [with_traces / without for without, with_traces in pairs]
    spans, _ = await collector.communicate(b"")
    print(f"without traces {statistics.median(without for without, _ in pairs):.0f} requests/s")
    print(f"a tenth recorded: {statistics.median(ratios):.3f} of that ({int(spans)} spans)")


if __name__ == "__main__":
    asyncio.run(collect() if "--collect" in sys.argv[1:] else main())

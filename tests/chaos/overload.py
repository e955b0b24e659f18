"""Ten times as many requests as can be answered: `python -m tests.chaos.overload`.

A gateway process in front of a replica process that computes one batch at a time, at a speed that it is told,
so that what can be answered does not hang on the processor. First it is measured how much that is; then ten
times as much is asked for, at a steady rate and with a deadline; then half of it, as if nothing had been.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import psutil
from PIL import Image

from tests.chaos.flood import Flood, Seen, flood
from tests.support.pictures import encoded
from tests.support.processes import started_gateway

DEADLINE_S = 3.0
# A batch of 32 takes a tenth of a second.
BATCH_S, IMAGE_S = 0.02, 0.0025
CAPACITY_CLIENTS = 128
# The gateway gives memory back about every ten seconds.
SETTLE_S = 12.0


@dataclass(frozen=True)
class Overload:
    """The figures. Times are in milliseconds, as clients see them; shares are of one core.

    Attributes:
        capacity_per_s: answers a second when as many ask as it takes.
        asked_per_s: requests a second in the overload.
        goodput: answers a second in the overload, as a share of the capacity.
        late: of the requests that were admitted, the share that were not answered before the deadline.
        unsent: requests that were to be sent and for which the client had no connection.
        admitted_p99_ms: of those that were answered.
        rss_mib: the gateway's before, at most during, and after the overload.
        after: of the requests after the overload, the share that were answered.
    """

    capacity_per_s: float
    asked_per_s: float
    goodput: float
    late: float
    admitted_p50_ms: float
    admitted_p99_ms: float
    refused_p50_ms: float
    refused_p99_ms: float
    statuses: dict[str, int]
    unsent: int
    rss_mib: tuple[float, float, float]
    after: float
    client_cpu_share: float
    gateway_cpu_share: float

    def held(self) -> bool:
        """Whether the figures are as they must be."""
        before, highest, after = self.rss_mib
        return (
            self.goodput >= 0.9
            and self.late <= 0.01
            and self.refused_p50_ms <= 5.0
            and highest <= 4 * before
            and after <= 1.5 * before
            and self.after == 1.0
            and self.unsent == 0
            and not self.statuses.keys() - {"200", "503", "504"}
        )


@asynccontextmanager
async def _replica() -> AsyncIterator[str]:
    command = ["-m", "tests.chaos.replica_process", "0", str(BATCH_S), str(IMAGE_S)]
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield (await process.stdout.readline()).decode().strip()
    finally:
        process.kill()
        await process.wait()


@contextmanager
def _photograph() -> Iterator[str]:
    """A file with a JPEG of about 15 kB, as a phone's thumbnail is."""
    noise = np.random.default_rng(3).integers(0, 256, [40, 40, 3], dtype=np.uint8)
    with tempfile.NamedTemporaryFile(suffix=".jpg") as file:
        file.write(encoded(Image.fromarray(noise).resize((320, 320)), "JPEG"))
        file.flush()
        yield file.name


async def measure(seconds: float, times: float = 10.0, calm_s: float = 8.0) -> Overload:
    """Overload a gateway for so many seconds.

    Args:
        seconds: how long.
        times: how many times as much is asked for as can be answered.
        calm_s: how long the capacity is measured before, and half of it is asked for after.
    """
    with _photograph() as body:
        async with _replica() as address, started_gateway(address, "digits") as live:
            url = f"{live.http_url}/v1/models/digits:classify"
            steady = Flood(url, body, 0, calm_s, DEADLINE_S, CAPACITY_CLIENTS)
            await flood(steady._replace(seconds=1.0))
            capacity = (await flood(steady)).per_s
            process = psutil.Process(live.pid)
            before, cpu_s = process.memory_info().rss, sum(process.cpu_times()[:2])
            async with _highest_rss(process) as highest:
                seen = await flood(Flood(url, body, times * capacity, seconds, DEADLINE_S))
            cpu_s = sum(process.cpu_times()[:2]) - cpu_s
            after = await flood(Flood(url, body, capacity / 2, calm_s, DEADLINE_S))
            await asyncio.sleep(SETTLE_S)
            rss = before, highest[0], process.memory_info().rss
    return _figures(capacity, times, seconds, seen, after, rss, cpu_s)


@asynccontextmanager
async def _highest_rss(process: psutil.Process) -> AsyncIterator[list[int]]:
    highest = [0]

    async def watch() -> None:
        while True:
            highest[0] = max(highest[0], process.memory_info().rss)
            await asyncio.sleep(0.1)

    task = asyncio.create_task(watch())
    try:
        yield highest
    finally:
        task.cancel()


def _figures(
    capacity: float,
    times: float,
    seconds: float,
    seen: Seen,
    after: Seen,
    rss: tuple[int, int, int],
    cpu_s: float,
) -> Overload:
    answered, given_up = seen.statuses.get("200", 0), seen.statuses.get("504", 0)
    admitted, refused = seen.latency_s.get("200", (0.0, 0.0)), seen.latency_s.get("503", (0.0, 0.0))
    return Overload(
        capacity_per_s=capacity,
        asked_per_s=times * capacity,
        goodput=seen.per_s / capacity,
        late=(seen.late + given_up) / max(answered + given_up, 1),
        admitted_p50_ms=admitted[0] * 1e3,
        admitted_p99_ms=admitted[1] * 1e3,
        refused_p50_ms=refused[0] * 1e3,
        refused_p99_ms=refused[1] * 1e3,
        statuses=seen.statuses,
        unsent=seen.unsent,
        rss_mib=(rss[0] / 2**20, rss[1] / 2**20, rss[2] / 2**20),
        after=after.statuses.get("200", 0) / max(after.sent, 1),
        client_cpu_share=seen.cpu_share,
        gateway_cpu_share=cpu_s / seconds,
    )


def main() -> None:
    """Measure, print the figures, and exit 1 if they are not as they must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--times", type=float, default=10.0)
    arguments = parser.parse_args()
    figures = asyncio.run(measure(arguments.seconds, arguments.times))
    print(json.dumps(asdict(figures), indent=2))
    sys.exit(0 if figures.held() else 1)


if __name__ == "__main__":
    main()

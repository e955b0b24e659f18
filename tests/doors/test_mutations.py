"""Thousands of damaged images against the live gateway, while a good client works."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import statistics
import time
from collections import Counter
from collections.abc import Sequence

import httpx
import psutil

from serving.commands.serve import SAMPLE
from tests.doors.conftest import Live
from tests.doors.mutations import mutations, originals
from tests.doors.neighbour import neighbour

PATH = "/v1/models/digits:classify"
# CI sends a few hundred; `SLUICE_MUTATIONS=10000` is the long run.
COUNT = int(os.environ.get("SLUICE_MUTATIONS", "600"))
LONG = 5000
WARM_UP = max(200, COUNT // 5)
SENDERS = 4
# At full speed the senders take all that the gateway has, and whoever shares it waits; this is a tenth.
FEW_PER_S = 50.0


async def send_all(
    client: httpx.AsyncClient, files: Sequence[bytes], per_s: float = math.inf
) -> Counter[int]:
    """Send files, several at once; how many got each status. Every refusal must say where and why."""
    statuses: Counter[int] = Counter()
    began = time.monotonic()
    left = iter(enumerate(files))

    async def send() -> None:
        for index, data in left:
            await asyncio.sleep(began + index / per_s - time.monotonic())
            answer = await client.post(
                PATH, content=data, headers={"content-type": "application/octet-stream"}
            )
            statuses[answer.status_code] += 1
            assert answer.status_code in (200, 400, 413), (answer.text, data)
            if answer.status_code != 200:
                assert answer.json()["detail"]
                assert answer.json()["stage"] == "decode"

    async with asyncio.TaskGroup() as tasks:
        for _ in range(SENDERS):
            tasks.create_task(send())
    return statuses


async def test_damaged_images_get_an_answer_with_a_cause_and_harm_nobody(live: Live) -> None:
    damaged = list(mutations(COUNT, seed=8))
    whole = originals(seed=8)
    good = [whole[index % len(whole)] for index in range(COUNT)]
    process = psutil.Process(live.pid)
    async with httpx.AsyncClient(base_url=live.http_url, timeout=60) as client:
        # The first of each format loads its decoder, and each thread gets its own arena: that is no growth.
        await send_all(client, list(mutations(WARM_UP, seed=9)))
        with neighbour(live.http_url + PATH, SAMPLE) as alone:
            await asyncio.sleep(COUNT / 2000)
        # The same senders with nothing wrong in what they send: what their mere load costs a neighbour.
        with neighbour(live.http_url + PATH, SAMPLE) as beside_good:
            assert await send_all(client, good) == {200: COUNT}
        before = process.memory_info().rss
        with neighbour(live.http_url + PATH, SAMPLE) as beside_bad:
            statuses = await send_all(client, damaged)
        with neighbour(live.http_url + PATH, SAMPLE) as beside_few:
            await send_all(client, list(mutations(COUNT // 4, seed=10)), per_s=FEW_PER_S)
    assert statuses[200] > COUNT // 50
    assert statuses[400] > COUNT // 4
    gc.collect()
    growth = process.memory_info().rss / before - 1
    print(
        f"{COUNT} files: {dict(statuses)}; RSS {growth:+.1%}; a neighbour's p50 and p99 in ms: "
        + ", ".join(
            f"{name} {quantile(seconds, 50) * 1000:.1f}, {quantile(seconds, 99) * 1000:.1f} ({len(seconds)})"
            for name, seconds in (
                ("alone", alone),
                ("beside good", beside_good),
                ("beside bad", beside_bad),
                ("beside few bad", beside_few),
            )
        )
    )
    assert growth < 0.10, f"grew by {growth:.1%}"
    if COUNT >= LONG:  # a quantile of few is chance
        assert quantile(beside_bad, 99) <= 2 * quantile(beside_good, 99)
        assert quantile(beside_few, 99) <= 2 * quantile(alone, 99)


def quantile(seconds: list[float], percent: int) -> float:
    return statistics.quantiles(seconds, n=100)[percent - 1]

"""Thousands of damaged images against the live gateway, while good clients work."""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import time
from collections import Counter

import httpx
import psutil

from tests.doors.conftest import Live
from tests.doors.mutations import mutations

PATH = "/v1/models/digits:classify"
# CI sends a few hundred; `SLUICE_MUTATIONS=10000` is the long run.
COUNT = int(os.environ.get("SLUICE_MUTATIONS", "600"))
WARM_UP = max(200, COUNT // 5)
SENDERS = 4


async def good_seconds(client: httpx.AsyncClient, photograph: bytes) -> float:
    started = time.perf_counter()
    answer = await client.post(PATH, content=photograph, headers={"content-type": "image/png"})
    assert answer.status_code == 200, answer.text
    return time.perf_counter() - started


async def test_damaged_images_get_an_answer_with_a_cause(live: Live, photograph: bytes) -> None:
    files = iter(mutations(COUNT, seed=8))
    statuses: Counter[int] = Counter()
    process = psutil.Process(live.pid)

    async def send(client: httpx.AsyncClient) -> None:
        for data in files:
            answer = await client.post(
                PATH, content=data, headers={"content-type": "application/octet-stream"}
            )
            statuses[answer.status_code] += 1
            assert answer.status_code in (200, 400, 413), (answer.text, data)
            if answer.status_code != 200:
                assert answer.json()["detail"]
                assert answer.json()["stage"] == "decode"

    async with httpx.AsyncClient(base_url=live.http_url, timeout=60) as client:
        # The first of each format loads its decoder, and each thread gets its own arena: that is no growth.
        for data in mutations(WARM_UP, seed=9):
            await client.post(PATH, content=data, headers={"content-type": "application/octet-stream"})
        alone = [await good_seconds(client, photograph) for _ in range(100)]
        before = process.memory_info().rss
        async with asyncio.TaskGroup() as tasks:
            senders = [tasks.create_task(send(client)) for _ in range(SENDERS)]
            beside = []
            while not all(each.done() for each in senders):
                beside.append(await good_seconds(client, photograph))
        assert sum(statuses.values()) == COUNT
        assert statuses[200] > COUNT // 50
        assert statuses[400] > COUNT // 4
        await good_seconds(client, photograph)
    gc.collect()
    growth = process.memory_info().rss / before - 1
    assert growth < 0.10, f"grew by {growth:.1%}"
    print(
        f"{COUNT} files: {dict(statuses)}; RSS {growth:+.1%}; good requests' p50 and p99 in ms: "
        f"alone {quantiles(alone)}, beside {quantiles(beside)}"
    )


def quantiles(seconds: list[float]) -> str:
    cuts = statistics.quantiles(seconds, n=100)
    return f"{cuts[49] * 1000:.1f}, {cuts[98] * 1000:.1f}"

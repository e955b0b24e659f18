"""Half an hour of mixed traffic with a new version each minute: `make soak`.

A real gateway in front of a real model server, as `sluice serve` starts them. Requests come at a steady rate
through every door, a tenth of them wrong; every answer must be the one that its request deserves. Memory and
open files are looked at all the while: after the first minutes, which fill caches and pools, they must stay.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import grpc.aio
import httpx
import numpy as np
import psutil

from serving import protos, tensors
from tests.support.pictures import encoded, gradient
from tests.support.processes import LiveProcess, started

SAMPLE_S = 5.0
RELOAD_S = 60.0
# Caches fill, malloc's arenas find their size: what is held is compared with that after this part.
SETTLING_SHARE = 1 / 6
MOST_GROWTH = 0.02
MOST_MORE_FILES = 2

Ask = Callable[[], Awaitable[str]]
"""Makes one request; returns what was wrong with its answer, or nothing."""


class Reading(NamedTuple):
    """What one process held at a moment."""

    at_s: float
    rss_bytes: int
    files: int
    threads: int


@dataclass
class Soak:
    """What happened.

    Attributes:
        asked: requests, by kind.
        wrong: answers that were not what they should have been.
        took_s: how long each request took.
        readings: by process.
        reloads: versions that were published.
    """

    asked: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    readings: dict[str, list[Reading]] = field(default_factory=dict)
    reloads: int = 0


def kinds(client: httpx.AsyncClient, channel: grpc.aio.Channel) -> dict[str, tuple[int, Ask]]:
    """Each kind of request: how often, among a hundred, and what makes it."""
    pictures = itertools.cycle(
        (encoded(gradient(size, size + 16), form), f"image/{form.lower()}")
        for size, form in itertools.product((48, 240, 1000), ("PNG", "JPEG", "WEBP"))
    )
    pixels = np.random.default_rng(1).integers(0, 256, [3, 8, 8, 1], dtype=np.uint8)
    path = "/v1/models/digits"

    async def post(url: str, status: int, **content: Any) -> str:
        answer = await client.post(url, **content)
        return "" if answer.status_code == status else f"{url}: {answer.status_code} {answer.text[:200]}"

    async def classify() -> str:
        picture, kind = next(pictures)
        return await post(f"{path}:classify", 200, content=picture, headers={"content-type": kind})

    async def several() -> str:
        files = [("images", (str(index), *next(pictures))) for index in range(4)]
        return await post(f"{path}:classify", 200, files=files)

    async def tensors_as_json() -> str:
        return await post(f"{path}:predict", 200, json={"instances": pixels.tolist()})

    async def broken_image() -> str:
        picture, _ = next(pictures)
        broken = picture[:30] + random.randbytes(200)
        return await post(f"{path}:classify", 400, content=broken, headers={"content-type": "image/png"})

    async def unknown_model() -> str:
        picture, kind = next(pictures)
        unknown = f"/v1/models/m{random.randrange(10**9)}:classify"
        return await post(unknown, 404, content=picture, headers={"content-type": kind})

    async def wrong_shape() -> str:
        return await post(f"{path}:predict", 400, json={"instances": [[1, 2, 3]]})

    return {
        "http image": (35, classify),
        "http several images": (10, several),
        "http tensors": (15, tensors_as_json),
        "broken image": (4, broken_image),
        "unknown model": (3, unknown_model),
        "wrong shape": (3, wrong_shape),
        **_rpcs(channel, pixels, lambda: next(pictures)[0]),
    }


def _rpcs(
    channel: grpc.aio.Channel, pixels: np.ndarray, picture: Callable[[], bytes]
) -> dict[str, tuple[int, Ask]]:
    def rpc(service: str, method: str) -> Callable[[Any], Awaitable[Any]]:
        request, response = protos.methods(service)[method]
        return channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )

    predict, classify = (
        rpc(protos.PREDICTION_SERVICE, "Predict"),
        rpc(protos.IMAGE_CLASSIFICATION, "Classify"),
    )

    async def image() -> str:
        answer = await classify(protos.ClassifyRequest(model="digits", images=[picture()]))
        return "" if len(answer.results) == 1 and answer.results[0].classes else f"Classify: {answer}"

    async def tensor() -> str:
        request = protos.PredictRequest(model_spec={"name": "digits"})
        request.inputs["images"].CopyFrom(tensors.to_proto(pixels))
        answer = tensors.from_proto((await predict(request)).outputs["scores"])
        return "" if answer.shape == (3, 10) else f"Predict: {answer.shape}"

    async def wrong_input() -> str:
        request = protos.PredictRequest(model_spec={"name": "digits"})
        request.inputs["pictures"].CopyFrom(tensors.to_proto(pixels))
        try:
            await predict(request)
        except grpc.aio.AioRpcError as error:
            return "" if error.code() is grpc.StatusCode.INVALID_ARGUMENT else f"Predict: {error.code()}"
        return "Predict takes an input that there is not"

    return {"gRPC image": (15, image), "gRPC tensor": (12, tensor), "gRPC wrong input": (3, wrong_input)}


async def ask_steadily(soak: Soak, asks: dict[str, tuple[int, Ask]], rate: float, until: float) -> None:
    """Ask at a rate, whatever the answers do, until a moment on the monotonic clock."""

    async def one(kind: str) -> None:
        before = time.monotonic()
        try:
            wrong = await asks[kind][1]()
        except Exception as error:  # whatever a client meets is a failure to be told
            wrong = f"{kind}: {error!r}"
        soak.asked[kind] += 1
        soak.took_s.append(time.monotonic() - before)
        if wrong:
            soak.wrong.append(wrong)

    names = list(asks)
    weights = [asks[name][0] for name in names]
    async with asyncio.TaskGroup() as tasks:
        next_at = time.monotonic()
        while next_at < until:
            tasks.create_task(one(random.choices(names, weights)[0]))
            next_at += 1 / rate
            await asyncio.sleep(max(0.0, next_at - time.monotonic()))


async def publish_steadily(soak: Soak, model: Path, every_s: float) -> None:
    """Publish a copy of version 1 as the next one, and take the last but one away, for ever."""
    original = model.parent.parent / "original"
    await asyncio.to_thread(shutil.copytree, model / "1", original)
    for version in itertools.count(2):
        await asyncio.sleep(every_s)
        written = model.parent.parent / "written"
        await asyncio.to_thread(shutil.copytree, original, written)
        written.rename(model / str(version))
        soak.reloads += 1
        if version > 2:
            await asyncio.to_thread(shutil.rmtree, model / str(version - 2))


async def read_steadily(soak: Soak, live: LiveProcess) -> None:
    """Note what both processes hold, for ever."""
    started_at = time.monotonic()
    gateway = psutil.Process(live.pid)
    while True:
        for name, process in (("gateway", gateway), ("model server", gateway.children()[0])):
            with process.oneshot():
                reading = Reading(
                    time.monotonic() - started_at,
                    process.memory_info().rss,
                    process.num_fds(),
                    process.num_threads(),
                )
            soak.readings.setdefault(name, []).append(reading)
        await asyncio.sleep(SAMPLE_S)


def growth(readings: list[Reading]) -> dict[str, Any]:
    """How much more was held at the end than once it had settled: medians over as long a while each, and
    over each tenth of the time, which tell a leak from what only fills up."""
    length = max(1, int(len(readings) * SETTLING_SHARE / 2))
    start = int(len(readings) * SETTLING_SHARE)
    settled, end = readings[start : start + length], readings[-length:]
    before, after = (statistics.median(each.rss_bytes for each in part) for part in (settled, end))
    files_before, files_after = (statistics.median(each.files for each in part) for part in (settled, end))
    tenth = max(1, len(readings) // 10)
    held = [each.rss_bytes for each in readings]
    parts = [held[at : at + tenth] for at in range(0, len(held), tenth)]
    return {
        "rss_mib_settled": before / 2**20,
        "rss_mib_end": after / 2**20,
        "growth": after / before - 1,
        "rss_mib_by_tenths": [round(statistics.median(part) / 2**20, 1) for part in parts],
        "files_settled": files_before,
        "files_end": files_after,
        "threads_end": readings[-1].threads,
    }


async def run(models: Path, minutes: float, rate: float) -> Soak:
    """Soak for so long; `models` holds `digits/1`, and is left as it is."""
    soak = Soak()
    with tempfile.TemporaryDirectory(prefix="sluice-soak-") as folder:
        copy = Path(folder) / "models"
        shutil.copytree(models / "digits" / "1", copy / "digits" / "1")
        async with started(["serve", f"--models={copy}"]) as live:
            limits = httpx.Limits(max_connections=64)
            async with (
                httpx.AsyncClient(base_url=live.http_url, timeout=60, limits=limits) as client,
                grpc.aio.insecure_channel(live.grpc_address) as channel,
            ):
                beside = [
                    asyncio.create_task(read_steadily(soak, live)),
                    asyncio.create_task(publish_steadily(soak, copy / "digits", RELOAD_S)),
                ]
                try:
                    until = time.monotonic() + 60 * minutes
                    await ask_steadily(soak, kinds(client, channel), rate, until)
                finally:
                    for task in beside:
                        task.cancel()
                    ended = await asyncio.gather(*beside, return_exceptions=True)
    soak.wrong += [repr(each) for each in ended if not isinstance(each, asyncio.CancelledError)]
    return soak


def report(soak: Soak) -> dict[str, Any]:
    """The figures, and whether they are as they must be."""
    held = {name: growth(readings) for name, readings in soak.readings.items()}
    took = np.quantile(soak.took_s, [0.5, 0.99])
    passed = (
        not soak.wrong
        and bool(held)
        and all(
            each["growth"] < MOST_GROWTH and each["files_end"] <= each["files_settled"] + MOST_MORE_FILES
            for each in held.values()
        )
    )
    return {
        "passed": passed,
        "requests": sum(soak.asked.values()),
        "wrong": len(soak.wrong),
        "reloads": soak.reloads,
        "p50_ms": took[0] * 1e3,
        "p99_ms": took[1] * 1e3,
        **held,
    }


def main() -> None:
    """Soak, print the figures, and exit 1 if they are not as they must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True, help="folder with digits/1")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second")
    arguments = parser.parse_args()
    soak = asyncio.run(run(arguments.models, arguments.minutes, arguments.rate))
    figures = report(soak)
    print(json.dumps(figures, indent=2))
    for text, count in Counter(soak.wrong).most_common(20):
        print(f"{count} x {text}")
    sys.exit(0 if figures["passed"] else 1)


if __name__ == "__main__":
    main()

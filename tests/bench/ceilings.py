"""What the parts could do alone: decode, HTTP, the model, a call; and a replica that costs nothing."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.images import ImageSpec, decode

MAX_PIXELS = 64_000_000


def decode_per_s(photos: list[bytes], side: int, seconds: float) -> tuple[float, float]:
    """Photographs decoded a second on all cores, and milliseconds for one alone."""
    spec = ImageSpec(side, side, 3)

    def work(count: list[int], end: float) -> None:
        index = 0
        while time.perf_counter() < end:
            decode(photos[index % len(photos)], spec, max_pixels=MAX_PIXELS)
            index += 1
        count.append(index)

    def run(threads: int) -> float:
        counts: list[int] = []
        end = time.perf_counter() + seconds
        workers = [threading.Thread(target=work, args=[counts, end]) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return sum(counts) / seconds

    alone = run(1)
    return run(len(os.sched_getaffinity(0))), 1e3 / alone


def rate(call: Callable[[], Any], seconds: float) -> float:
    """Calls a second, one after the other."""
    call()
    count, started = 0, time.perf_counter()
    while (now := time.perf_counter()) < started + seconds:
        call()
        count += 1
    return count / (now - started)


def in_process(folder: Path, side: int, sizes: list[int], seconds: float) -> dict[int, float]:
    """Images a second through the SavedModel, by batch size; imports TensorFlow."""
    import numpy as np

    from serving.modelserver.servable import LoadOptions, Session

    session = Session(folder, LoadOptions())
    signature = session.signatures["serving_default"]
    feed, fetch = signature.inputs["images"].name, signature.outputs["scores"].name
    found = {}
    for size in sizes:
        images = np.random.default_rng(0).integers(0, 256, [size, side, side, 3], dtype=np.uint8)

        def call(images: np.ndarray = images) -> Any:
            return session.run({feed: images}, [fetch])

        found[size] = size * rate(call, seconds)
    return found


async def empty_post(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI app that reads a body and answers nothing much."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body", False):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"{}"})


def serve_empty_post() -> None:
    """Serve `empty_post` as the gateway is served, until killed; prints the port."""
    import uvicorn

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(2048)
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(
        empty_post, loop="uvloop", http="httptools", ws="none", lifespan="off", log_level="error"
    )
    uvicorn.Server(config).run(sockets=[listener])


async def serve_fast_replica(side: int) -> None:
    """A replica that computes a batch in 5 ms, as a GPU does, until killed; prints the port."""
    from tests.support.fake_replica import FakeReplica, running

    async def five_milliseconds(_request: Any) -> None:
        await asyncio.sleep(0.005)

    replica = FakeReplica({"model": {1}}, shape=(side, side, 3), before_predict=five_milliseconds)
    async with running(replica):
        print(replica.address.rpartition(":")[2], flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "empty-post":
        serve_empty_post()
    elif what == "fast-replica":
        asyncio.run(serve_fast_replica(int(rest[0])))
    else:
        about = json.loads(rest[0])
        print(json.dumps(in_process(Path(about["folder"]), about["side"], about["sizes"], about["seconds"])))

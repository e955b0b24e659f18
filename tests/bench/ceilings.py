"""What the parts could do alone: decode, HTTP, the model, a gRPC call; and a replica that costs nothing."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from serving.images import ImageSpec, decode

MAX_PIXELS = 64_000_000
CORES = len(os.sched_getaffinity(0))


def rate(calls: Sequence[Callable[[], Any]], seconds: float) -> float:
    """Calls a second, with a thread for each of these, from the first call's end to the last's."""
    rates: list[float] = []

    def work(call: Callable[[], Any]) -> None:
        call()
        count, started = 0, time.perf_counter()
        while (now := time.perf_counter()) < started + seconds:
            call()
            count += 1
        rates.append(count / (now - started))

    threads = [threading.Thread(target=work, args=[call]) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(rates)


def decode_per_s(photos: list[bytes], side: int, seconds: float) -> tuple[float, float]:
    """Photographs decoded a second on all cores, and milliseconds for one alone."""
    spec = ImageSpec(side, side, 3)

    def call(turn: Iterator[bytes]) -> None:
        decode(next(turn), spec, max_pixels=MAX_PIXELS)

    def calls(threads: int) -> list[Callable[[], None]]:
        return [functools.partial(call, itertools.cycle(photos)) for _ in range(threads)]

    return rate(calls(CORES), seconds), 1e3 / rate(calls(1), seconds)


def serve_in_process(folder: Path, side: int) -> None:
    """Calls of a SavedModel a second, for each line of the input: `{"size", "callers", "seconds"}`. Imports
    TensorFlow, and says `{}` once the model is loaded."""
    import numpy as np

    from serving.modelserver.servable import LoadOptions, Session

    session = Session(folder, LoadOptions())
    signature = session.signatures["serving_default"]
    feed, fetch = signature.inputs["images"].name, signature.outputs["scores"].name
    print("{}", flush=True)
    for line in sys.stdin:
        about = json.loads(line)
        shape = [about["size"], side, side, 3]
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        call = functools.partial(session.run, {feed: images}, [fetch])
        print(json.dumps(rate([call] * about["callers"], about["seconds"])), flush=True)


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


async def serve_empty_predict(rows: int) -> None:
    """A replica that parses a batch and answers scores at once, without a look at it; prints the port."""
    import grpc.aio
    import numpy as np

    from serving import protos, tensors

    answer = protos.PredictResponse()
    answer.outputs["scores"].CopyFrom(tensors.to_proto(np.zeros([rows, 10], np.float32)))

    async def predict(_request: Any, _context: Any) -> Any:
        return answer

    request_type, response_type = protos.methods(protos.PREDICTION_SERVICE)["Predict"]
    method = grpc.unary_unary_rpc_method_handler(
        predict, request_type.FromString, response_type.SerializeToString
    )
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(protos.PREDICTION_SERVICE, {"Predict": method})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


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
    elif what == "empty-predict":
        asyncio.run(serve_empty_predict(int(rest[0])))
    elif what == "fast-replica":
        asyncio.run(serve_fast_replica(int(rest[0])))
    else:
        serve_in_process(Path(rest[0]), int(rest[1]))

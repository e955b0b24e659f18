"""Load: wrk over HTTP, which costs little, and asyncio clients where wrk cannot serve: gRPC, and servers so
slow that what wrk leaves unfinished counts.

The asyncio clients run in a process of their own: `python -m tests.bench.load WHAT JSON`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.bench.photos import Requests, bodies

SCRIPT = Path(__file__).with_name("photos.lua")


class Load(NamedTuple):
    """What a round of load met: answers a second, their latency, requests that failed, how many answers there
    were, and the processor time of the client itself for each."""

    per_s: float
    p50_ms: float
    p99_ms: float
    failed: int
    answers: int = 0
    client_ms: float = 0.0


class NoAnswer(Exception):
    """A server from which nothing came; the text is the client's."""


def post_photos(url: str, requests: Requests, *, clients: int, seconds: float) -> Load:
    """Post photographs from so many connections with wrk; raises RuntimeError if wrk is missing, and
    `NoAnswer` if nobody listens."""
    if shutil.which("wrk") is None:
        raise RuntimeError("wrk is missing; install it: apt-get install wrk")
    whole_s = max(1, round(seconds))  # wrk knows no others
    command = ["wrk", "-t1", f"-c{clients}", f"-d{whole_s}s", "--timeout", "30s", "-s", str(SCRIPT), url]
    headers = [f"{name}: {value}" for name, value in requests.headers.items()]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*command, "--", str(requests.folder), *headers], check=False, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise NoAnswer((done.stdout + done.stderr).strip() or "no message")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    answered = found["requests"] - found["refused"]
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Load(
        answered / (found["duration_us"] / 1e6),
        found["p50_us"] / 1e3,
        found["p99_us"] / 1e3,
        found["refused"] + found["broken"],
        answered,
        cpu_s / max(found["requests"], 1) * 1e3,
    )


def post_photos_slowly(url: str, requests: Requests, *, clients: int, seconds: float) -> Load:
    """The same from asyncio, for servers of a few answers a second: exact where each client has but few."""
    about = {"url": url, "folder": str(requests.folder), "headers": requests.headers}
    return _in_a_process("post", about | {"clients": clients, "seconds": seconds})[""]


def classify_photos(address: str, model: str, folder: Path, *, clients: int, seconds: float) -> Load:
    """Sluice's own gRPC API with a photograph a call."""
    about = {"addresses": {"": address}, "model": model, "folder": str(folder), "rows": 1}
    return _in_a_process("classify", about | {"clients": clients, "seconds": seconds})[""]


def call_predict(address: str, model: str, *, rows: int, side: int, clients: int, seconds: float) -> Load:
    """Predict with random images, as fast as answers come."""
    about = {"addresses": {"": address}, "model": model, "rows": rows, "side": side}
    return _in_a_process("predict", about | {"clients": clients, "seconds": seconds})[""]


def compare_predict(
    addresses: Mapping[str, str],
    model: str,
    *,
    rows: int,
    side: int,
    seconds: float,
    clients: int = 1,
    calls_per_s: float = 0.0,
    turn_s: float = 1.0,
) -> dict[str, Load]:
    """The same at each of several addresses in turns, so many seconds each in all; at a steady rate, whatever
    the answers take, where one is given."""
    about = {"addresses": dict(addresses), "model": model, "rows": rows, "side": side, "clients": clients}
    about |= {"seconds": seconds, "calls_per_s": calls_per_s, "turn_s": turn_s}
    return _in_a_process("predict", about)


def _in_a_process(what: str, about: dict[str, Any]) -> dict[str, Load]:
    command = [sys.executable, "-m", "tests.bench.load", what, json.dumps(about)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise NoAnswer(done.stderr.strip().rpartition("\n")[2])
    return {name: Load(*found) for name, found in json.loads(done.stdout.strip().splitlines()[-1]).items()}


class Calls(NamedTuple):
    """What a round found: when each call of each client ended, how long it took, and how many failed."""

    ended_s: list[list[float]]
    took_s: list[float]
    failed: int

    def load(self, rows: int, client_s: float) -> Load:
        """Each client's rate is that between its first and its last answer, so that neither the beginning nor
        what is unfinished in the end counts."""
        if not self.took_s:
            raise NoAnswer(f"{self.failed} calls failed, none succeeded")
        rates = [(len(each) - 1) / (each[-1] - each[0]) for each in self.ended_s if len(each) > 1]
        p50, p99 = np.quantile(self.took_s, [0.5, 0.99]) * 1e3
        answers = len(self.took_s) * rows
        client_ms = client_s / answers * 1e3
        return Load(sum(rates) * rows, float(p50), float(p99), self.failed, answers, client_ms)


Call = Callable[[int], Awaitable[bool]]


async def closed_loop(call: Call, clients: int, seconds: float) -> Calls:
    """So many clients, each of which calls again as soon as it has its answer.

    Args:
        call: makes a call as client so and so; whether it succeeded.
        clients: how many.
        seconds: how long; at least two calls of each, however long they take.
    """
    found = Calls([[] for _ in range(clients)], [], 0)
    failed = 0
    started = time.perf_counter()

    async def client(index: int) -> None:
        nonlocal failed
        ended = found.ended_s[index]
        while (before := time.perf_counter()) < started + seconds or len(ended) + failed < 2:
            succeeded = await call(index)
            now = time.perf_counter()
            if succeeded:
                ended.append(now)
                found.took_s.append(now - before)
            failed += not succeeded

    await asyncio.gather(*(client(index) for index in range(clients)))
    return found._replace(failed=failed)


async def steady(call: Call, seconds: float, calls_per_s: float) -> Calls:
    """Calls at a steady rate, whatever the answers take."""
    found, failed = Calls([[]], [], 0), 0

    async def one() -> None:
        nonlocal failed
        before = time.perf_counter()
        succeeded = await call(0)
        now = time.perf_counter()
        if succeeded:
            found.ended_s[0].append(now)
            found.took_s.append(now - before)
        failed += not succeeded

    started, tasks = time.perf_counter(), []
    for index in range(max(2, round(seconds * calls_per_s))):
        await asyncio.sleep(started + index / calls_per_s - time.perf_counter())
        tasks.append(asyncio.create_task(one()))
    await asyncio.gather(*tasks)
    return found._replace(failed=failed)


def together(turns: Sequence[Calls], rows: int, client_s: float) -> Load:
    """The load of several turns: the mean of their rates, and the quantiles of all their calls."""
    whole = Calls(
        [], [took_s for turn in turns for took_s in turn.took_s], sum(turn.failed for turn in turns)
    )
    rates = [turn.load(rows, client_s).per_s for turn in turns]
    return whole.load(rows, client_s)._replace(per_s=sum(rates) / len(rates))


def _predict_calls(about: dict[str, Any]) -> tuple[str, str, list[Any]]:
    """The service, the method, and the requests to send in turn."""
    from serving import protos, tensors

    shape = [about["rows"], about["side"], about["side"], 3]
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    request = protos.PredictRequest(model_spec={"name": about["model"]})
    request.inputs["images"].CopyFrom(tensors.to_proto(images))
    return protos.PREDICTION_SERVICE, "Predict", [request]


def _classify_calls(about: dict[str, Any]) -> tuple[str, str, list[Any]]:
    from serving import protos

    request_type, _ = protos.methods(protos.IMAGE_CLASSIFICATION)["Classify"]
    requests = [request_type(model=about["model"], images=[body]) for body in bodies(Path(about["folder"]))]
    return protos.IMAGE_CLASSIFICATION, "Classify", requests


async def _grpc(about: dict[str, Any], service: str, method: str, requests: Sequence[Any]) -> dict[str, Load]:
    import grpc.aio

    from serving import protos

    request_type, response_type = protos.methods(service)[method]
    turn = itertools.cycle(requests)
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]

    def caller(channel: grpc.aio.Channel) -> Call:
        rpc = channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=request_type.SerializeToString,
            response_deserializer=response_type.FromString,
        )

        async def call(_client: int) -> bool:
            try:
                await rpc(next(turn))
            except grpc.aio.AioRpcError:
                return False
            return True

        return call

    channels = {
        name: grpc.aio.insecure_channel(address, options=options)
        for name, address in about["addresses"].items()
    }
    calls = {name: caller(channel) for name, channel in channels.items()}
    for call in calls.values():
        await call(0)
    used = time.process_time()
    turns: dict[str, list[Calls]] = {name: [] for name in calls}
    count = max(1, round(about["seconds"] / about["turn_s"])) if len(calls) > 1 else 1
    for name, call in [*calls.items()] * count:
        seconds = about["seconds"] / count
        if about.get("calls_per_s"):
            turns[name].append(await steady(call, seconds, about["calls_per_s"]))
        else:
            turns[name].append(await closed_loop(call, about["clients"], seconds))
    used = time.process_time() - used
    for channel in channels.values():
        await channel.close()
    return {name: together(each, about["rows"], used / len(turns)) for name, each in turns.items()}


def _main() -> None:
    what, about = sys.argv[1], json.loads(sys.argv[2])
    if what == "post":
        from tests.bench.slow_client import post

        found = asyncio.run(post(about))
    else:
        calls = {"predict": _predict_calls, "classify": _classify_calls}[what]
        found = asyncio.run(_grpc(about, *calls(about)))
    print(json.dumps(found))


if __name__ == "__main__":
    _main()

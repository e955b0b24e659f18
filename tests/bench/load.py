"""Load: wrk over HTTP, which costs little; an asyncio client over gRPC, which wrk cannot speak."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SCRIPT = Path(__file__).with_name("photos.lua")


class Load(NamedTuple):
    """What a round of load met: answers a second, their latency, and requests that failed."""

    per_s: float
    p50_ms: float
    p99_ms: float
    failed: int


def unpack_photos(archive: Path, folder: Path, most: int = 96) -> list[bytes]:
    """Put the photographs of a zip archive into a folder for `post_photos`; their bytes."""
    with zipfile.ZipFile(archive) as opened:
        names = [name for name in opened.namelist() if name.lower().endswith((".jpg", ".jpeg"))][:most]
        photos = [opened.read(name) for name in names]
    for index, photo in enumerate(photos):
        (folder / str(index)).write_bytes(photo)
    (folder / "list").write_text("".join(f"{index}\n" for index in range(len(photos))))
    return photos


def post_photos(
    url: str, folder: Path, *, clients: int, seconds: float, content_type: str = "image/jpeg"
) -> Load:
    """Post photographs from so many connections; raises RuntimeError if wrk is missing."""
    if shutil.which("wrk") is None:
        raise RuntimeError("wrk is missing; install it: apt-get install wrk")
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds:g}s", "--timeout", "30s", "-s", str(SCRIPT), url]
    output = subprocess.run(
        [*command, "--", str(folder), content_type], check=True, capture_output=True, text=True
    ).stdout
    found = json.loads(output.strip().splitlines()[-1])
    failed = found["refused"] + found["broken"]
    answered = found["requests"] - found["refused"]
    return Load(answered / (found["duration_us"] / 1e6), found["p50_us"] / 1e3, found["p99_us"] / 1e3, failed)


def call_predict(
    address: str, model: str, *, rows: int, size: int, clients: int, seconds: float, calls_per_s: float = 0.0
) -> Load:
    """Predict with random images; `calls_per_s` 0: as fast as answers come."""
    about = {"address": address, "model": model, "rows": rows, "size": size, "clients": clients}
    return _in_a_process("predict", about | {"seconds": seconds, "calls_per_s": calls_per_s})


def classify_photos(address: str, model: str, folder: Path, *, clients: int, seconds: float) -> Load:
    """Sluice's own gRPC API with a photograph a call."""
    about = {"address": address, "model": model, "folder": str(folder), "clients": clients}
    return _in_a_process("classify", about | {"seconds": seconds, "calls_per_s": 0.0, "rows": 1})


def _in_a_process(what: str, about: dict[str, Any]) -> Load:
    command = [sys.executable, "-m", "tests.bench.load", what, json.dumps(about)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return Load(*json.loads(output.strip().splitlines()[-1]))


def _predict_calls(about: dict[str, Any]) -> tuple[str, str, list[Any]]:
    """The service, the method, and the requests to send in turn."""
    from serving import protos, tensors

    shape = [about["rows"], about["size"], about["size"], 3]
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    request = protos.PredictRequest(model_spec={"name": about["model"]})
    request.inputs["images"].CopyFrom(tensors.to_proto(images))
    return protos.PREDICTION_SERVICE, "Predict", [request]


def _classify_calls(about: dict[str, Any]) -> tuple[str, str, list[Any]]:
    from serving import protos

    request_type, _ = protos.methods(protos.IMAGE_CLASSIFICATION)["Classify"]
    photos = sorted(path for path in Path(about["folder"]).iterdir() if path.name.isdigit())
    requests = [request_type(model=about["model"], images=[path.read_bytes()]) for path in photos]
    return protos.IMAGE_CLASSIFICATION, "Classify", requests


async def _call(about: dict[str, Any], service: str, method: str, requests: list[Any]) -> Load:
    import grpc.aio

    from serving import protos

    request_type, response_type = protos.methods(service)[method]
    times: list[float] = []
    failed = 0
    turn = itertools.cycle(requests)
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(about["address"], options=options) as channel:
        call = channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=request_type.SerializeToString,
            response_deserializer=response_type.FromString,
        )
        await call(requests[0])
        started = time.perf_counter()

        async def client() -> None:
            nonlocal failed
            while (before := time.perf_counter()) < started + about["seconds"]:
                try:
                    await call(next(turn))
                except grpc.aio.AioRpcError:
                    failed += 1
                    continue
                took_s = time.perf_counter() - before
                times.append(took_s)
                if about["calls_per_s"]:
                    await asyncio.sleep(max(0.0, about["clients"] / about["calls_per_s"] - took_s))

        await asyncio.gather(*(client() for _ in range(about["clients"])))
        duration_s = time.perf_counter() - started
    p50, p99 = np.quantile(times, [0.5, 0.99]) * 1e3
    return Load(len(times) * about["rows"] / duration_s, float(p50), float(p99), failed)


def _main() -> None:
    about = json.loads(sys.argv[2])
    calls = {"predict": _predict_calls, "classify": _classify_calls}[sys.argv[1]]
    print(json.dumps(asyncio.run(_call(about, *calls(about)))))


if __name__ == "__main__":
    _main()

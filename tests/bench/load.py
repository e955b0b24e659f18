"""Load: wrk over HTTP, which costs little; an asyncio client over gRPC, which wrk cannot speak."""

from __future__ import annotations

import asyncio
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
    """Predict with random images, in a process of its own; `calls_per_s` 0: as fast as answers come."""
    about = {"address": address, "model": model, "rows": rows, "size": size, "clients": clients}
    about |= {"seconds": seconds, "calls_per_s": calls_per_s}
    output = subprocess.run(
        [sys.executable, "-m", "tests.bench.load", json.dumps(about)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return Load(*json.loads(output.strip().splitlines()[-1]))


async def _predict(about: dict[str, Any]) -> Load:
    import grpc.aio

    from serving import protos, tensors

    size, rows = about["size"], about["rows"]
    images = np.random.default_rng(0).integers(0, 256, [rows, size, size, 3], dtype=np.uint8)
    request = protos.PredictRequest(model_spec={"name": about["model"]})
    request.inputs["images"].CopyFrom(tensors.to_proto(images))
    request_type, response_type = protos.methods(protos.PREDICTION_SERVICE)["Predict"]
    times: list[float] = []
    failed = 0
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(about["address"], options=options) as channel:
        predict = channel.unary_unary(
            f"/{protos.PREDICTION_SERVICE}/Predict",
            request_serializer=request_type.SerializeToString,
            response_deserializer=response_type.FromString,
        )
        await predict(request)
        started = time.perf_counter()

        async def client() -> None:
            nonlocal failed
            while (before := time.perf_counter()) < started + about["seconds"]:
                try:
                    await predict(request)
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
    return Load(len(times) * rows / duration_s, float(p50), float(p99), failed)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_predict(json.loads(sys.argv[1])))))

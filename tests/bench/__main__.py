"""The benchmark: Sluice against its parts, a hand-written server, and itself without a gateway.

`python -m tests.bench` (`make bench`). Everything runs on this machine, one load at a time, round after
round, so that a slow minute slows all alike; what counts are ratios within one run. Writes `bench.json` and
`bench.png` into the folder that `--out` names.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.bench import ceilings, report
from tests.bench.load import Load, call_predict, classify_photos, post_photos, unpack_photos

REPOSITORY = Path(__file__).parents[2]
SIDES = {"resnet20": 32, "resnet50": 224}
SIZES = [1, 8, 32]
CLIENTS = [1, 8, 32, 128]
START_TIMEOUT_S = 120.0


@contextlib.contextmanager
def process(*arguments: str, pattern: str = r"(.+)") -> Iterator[tuple[str, int]]:
    """A program while the block runs: the first group of `pattern` in its output, and its pid."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=REPOSITORY,
        env=environment,
    )
    assert child.stdout is not None
    try:
        for line in child.stdout:
            if found := re.search(pattern, line):
                yield found[1], child.pid
                return
        raise RuntimeError(f"{' '.join(arguments)} ended with code {child.wait()}")
    finally:
        child.terminate()
        child.wait()


def until(condition: Callable[[], bool]) -> None:
    """Wait for something; raises TimeoutError if it takes over two minutes."""
    end = time.monotonic() + START_TIMEOUT_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("a server does not come up")
        time.sleep(0.1)


def is_ready(url: str) -> bool:
    """Whether a gateway is ready."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def gateway(replica: str, model: str, *options: str) -> Iterator[tuple[str, str, int]]:
    """`sluice gateway` in front of a replica: its URL, its gRPC address, its pid."""
    command = ["-m", "serving.cli", "gateway", f"--replica={replica}", f"--model={model}"]
    command += ["--http-port=0", "--grpc-port=0", *options]
    with contextlib.ExitStack() as stack:
        url, pid = stack.enter_context(process(*command, pattern=r"HTTP\s+(http://\S+)"))
        until(lambda: is_ready(url))
        yield url, _grpc_address(pid, url), pid


def _grpc_address(pid: int, url: str) -> str:
    """The other port that a gateway, or its workers, listen on."""
    parent = psutil.Process(pid)
    ports = {
        each.laddr.port
        for process in (parent, *parent.children())
        for each in process.net_connections()
        if each.status == "LISTEN"
    }
    (port,) = ports - {int(url.rpartition(":")[2])}
    return f"127.0.0.1:{port}"


class Bench:
    """Collects what each contestant does, round by round."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.rounds: dict[str, list[Load]] = {}
        self.ceilings: dict[str, list[float]] = {}

    def load(self, name: str, load: Load) -> None:
        """One round of a contestant."""
        self.rounds.setdefault(name, []).append(load)
        print(f"  {name:<44}{load.per_s:9.1f}/s  p50 {load.p50_ms:7.1f}  p99 {load.p99_ms:7.1f} ms", end="")
        print(f"  {load.failed} FAILED" if load.failed else "", flush=True)

    def ceiling(self, name: str, value: float) -> None:
        """One measurement of a part."""
        self.ceilings.setdefault(name, []).append(value)
        print(f"  {name:<44}{value:9.2f}", flush=True)


def measure_parts(
    bench: Bench, model: str, folder: Path, photos: list[bytes], work: Path, empty: str
) -> None:
    """Decode, HTTP and the model, each alone."""
    side = SIDES[model]
    per_s, alone_ms = ceilings.decode_per_s(photos, side, bench.seconds / 2)
    bench.ceiling("decode, all cores (images/s)", per_s)
    bench.ceiling("decode, one image (ms)", alone_ms)
    for clients in (1, 32):
        bench.load(
            f"empty POST, {clients} clients", post_photos(empty, work, clients=clients, seconds=bench.seconds)
        )
    about = {"folder": str(folder), "side": side, "sizes": SIZES, "seconds": bench.seconds / 2}
    with process("-m", "tests.bench.ceilings", "in-process", json.dumps(about), pattern=r"^({.+})$") as (
        found,
        _,
    ):
        for size, value in json.loads(found).items():
            bench.ceiling(f"model in process, batch {size} (images/s)", value)


def measure_model(bench: Bench, model: str, photos: list[bytes], work: Path, rounds: int) -> dict[str, float]:
    """One model, everything interleaved; resident memory of each process, in MB."""
    folder, socket_path = work / model / "1", work / f"{model}.sock"
    export = [sys.executable, "-m", "tests.bench.model_server", "--export", model, str(folder)]
    subprocess.run(export, check=True, capture_output=True, cwd=REPOSITORY)
    flags = [
        f"--model_name={model}",
        f"--model_base_path={folder.parent}",
        f"--grpc_socket_path={socket_path}",
    ]
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        _, server_pid = enter(process("-m", "tests.bench.quiet_server", *flags, "--port=0"))
        url, grpc_address, gateway_pid = enter(gateway(f"unix:{socket_path}", model))
        port, baseline_pid = enter(
            process("-m", "tests.bench.fastapi_baseline", str(folder), str(SIDES[model]), pattern=r"^(\d+)$")
        )
        empty, _ = enter(process("-m", "tests.bench.ceilings", "empty-post"))
        posts = {
            "sluice": f"{url}/v1/models/{model}:classify",
            "hand-written FastAPI": f"http://127.0.0.1:{port}/classify",
        }
        for target in posts.values():
            post_photos(target, work, clients=8, seconds=2)
        addresses = {"direct": f"unix:{socket_path}", "sluice": grpc_address}
        for number in range(rounds):
            print(f"{model}, round {number + 1} of {rounds}", flush=True)
            measure_parts(bench, model, folder, photos, work, f"http://127.0.0.1:{empty}/")
            for clients in CLIENTS:
                for name, target in posts.items():
                    found = post_photos(target, work, clients=clients, seconds=bench.seconds)
                    bench.load(f"{name}, {clients} clients", found)
            found = classify_photos(grpc_address, model, work, clients=32, seconds=bench.seconds)
            bench.load("sluice over gRPC, 32 clients", found)
            measure_tensors(bench, model, addresses)
        pids = {"gateway": gateway_pid, "model server": server_pid, "hand-written FastAPI": baseline_pid}
        return {name: memory_mb(psutil.Process(pid)) for name, pid in pids.items()}


def memory_mb(process: psutil.Process) -> float:
    """Resident memory of a process and its children."""
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True))) / 1e6


def measure_tensors(bench: Bench, model: str, addresses: dict[str, str]) -> None:
    """Predict over gRPC, straight and through the gateway: as much as goes, and half of that."""
    side, seconds = SIDES[model], bench.seconds
    for name, address in addresses.items():
        found = call_predict(address, model, rows=32, size=side, clients=2, seconds=seconds)
        bench.load(f"{name}, tensors, batch 32", found)
    calls_per_s = bench.rounds["direct, tensors, batch 32"][-1].per_s / 32 / 2
    for name, address in addresses.items():
        found = call_predict(
            address, model, rows=32, size=side, clients=2, seconds=seconds, calls_per_s=calls_per_s
        )
        bench.load(f"{name}, tensors, half load", found)


def measure_fast_replica(bench: Bench, work: Path) -> None:
    """The gateway in front of a replica that answers a batch in 5 ms: HTTP and decode are all there is."""
    with (
        process("-m", "tests.bench.ceilings", "fast-replica", "32") as (port, _),
        gateway(f"127.0.0.1:{port}", "model") as (url, _, _),
    ):
        target = f"{url}/v1/models/model:classify"
        post_photos(target, work, clients=8, seconds=1)
        bench.load(
            "sluice, fast replica, 64 clients", post_photos(target, work, clients=64, seconds=bench.seconds)
        )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["resnet20"], choices=list(SIDES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "build" / "bench")
    arguments = parser.parse_args()
    data = Path(os.environ.get("SLUICE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (data / "photos.zip").exists():
        sys.exit(f"error: there is no photos.zip in {data}; set SLUICE_TEST_DATA to the folder that has it")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as name:
        work = Path(name)
        photos = unpack_photos(data / "photos.zip", work)
        for model in arguments.models:
            bench = Bench(arguments.seconds)
            memory = measure_model(bench, model, photos, work, arguments.rounds)
            if model == "resnet20":
                for _ in range(arguments.rounds):
                    measure_fast_replica(bench, work)
            found[model] = report.summary(bench.rounds, bench.ceilings, memory)
    report.write(found, arguments.out)


if __name__ == "__main__":
    main()

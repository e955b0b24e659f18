"""Predict through the model server against the same SavedModel called in process.

`python -m tests.bench.model_server` (`make bench-model-server`, arguments in `BENCH="…"`). For each model
and batch size, rounds in process and through the server follow one another, so that a busy machine slows
both; the ratio of throughputs is the median over the rounds. In process is measured in two ways: the
signature of `tf.saved_model.load`, as TensorFlow's guide calls a model, and the bare session, as TensorFlow
Serving does. The ratio by processor time (rows that a second of processor time is good for, the client's
part included) tells the same on a machine that others keep busy. SLUICE_MODEL_SERVER puts another program
in the server's place.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from serving import protos, tensors
from tests.modelserver.process import ServerProcess

SIZES = {"resnet20": 32, "resnet50": 224}
CLASSES = {"resnet20": 10, "resnet50": 1000}
CLIENTS = 2  # threads that call


class Round(NamedTuple):
    """One measurement: rows a second and processor time a row with two callers; the median time of a
    call, alone."""

    rows_per_s: float
    cpu_s_per_row: float
    p50_s: float


def export(depth: str, folder: Path) -> None:
    """A frozen ResNet with random weights, uint8 images in, scores out."""
    import keras
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    from training.models.resnet import ResNet

    keras.utils.set_random_seed(0)
    size = SIZES[depth]
    model = ResNet(CLASSES[depth], depth)
    spec = tf.TensorSpec([None, size, size, 3], tf.uint8, name="images")
    model(np.zeros([1, size, size, 3], np.uint8))
    frozen = convert_variables_to_constants_v2(tf.function(model).get_concrete_function(spec))
    module = tf.Module()
    module.serve = tf.function(lambda images: {"scores": frozen(images)[0]}, input_signature=[spec])
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serve})


def measure(call: Callable[[], Any], cpu_s: Callable[[], float], rows: int, seconds: float) -> Round:
    """Call from two threads for a while, then from one; `cpu_s` tells the processor time used so far."""
    call()
    counts = [0] * CLIENTS
    end = time.perf_counter() + seconds

    def work(index: int) -> None:
        while time.perf_counter() < end:
            call()
            counts[index] += 1

    threads = [threading.Thread(target=work, args=[index]) for index in range(CLIENTS)]
    started, cpu_started = time.perf_counter(), cpu_s()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = sum(counts) * rows
    throughput, cpu = done / (time.perf_counter() - started), (cpu_s() - cpu_started) / done
    times: list[float] = []
    end = time.perf_counter() + seconds / 2
    while time.perf_counter() < end or len(times) < 5:
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return Round(throughput, cpu, statistics.median(times))


def images(depth: str, rows: int) -> np.ndarray:
    """Random pixels."""
    return np.random.default_rng(0).integers(0, 256, [rows, SIZES[depth], SIZES[depth], 3], dtype=np.uint8)


def serve_in_process() -> None:
    """The other side of `InProcess`: loads a model, measures as each line of its input says."""
    request = json.loads(sys.stdin.readline())
    run = {"signature": _signature, "session": _session}[request["way"]](request["path"])
    for line in sys.stdin:
        todo = json.loads(line)
        array = images(request["depth"], todo["rows"])

        def call(array: np.ndarray = array) -> Any:
            return run(array)

        print(json.dumps(measure(call, time.process_time, todo["rows"], todo["seconds"])), flush=True)


def _signature(path: str) -> Callable[[np.ndarray], Any]:
    """The model as TensorFlow's guide loads and calls it."""
    import tensorflow as tf

    loaded = tf.saved_model.load(path)  # the signature does not keep it alive
    signature = loaded.signatures["serving_default"]
    return lambda array: (loaded, signature(images=tf.constant(array))["scores"].numpy())[1]


def _session(path: str) -> Callable[[np.ndarray], Any]:
    """The model as TensorFlow Serving calls it: nothing in Python is faster."""
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default():
        session = tf.compat.v1.Session(graph=graph)
        loaded = tf.compat.v1.saved_model.loader.load(session, ["serve"], path)
    signature = loaded.signature_def["serving_default"]
    run: Callable[[np.ndarray], Any] = session.make_callable(
        [signature.outputs["scores"].name], [signature.inputs["images"].name]
    )
    return run


class InProcess:
    """A process that calls the model itself.

    Args:
        depth: which model.
        path: the SavedModel.
        way: `signature` of `tf.saved_model.load`, or the bare `session`.
    """

    def __init__(self, depth: str, path: Path, way: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.model_server", "--in-process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._send({"depth": depth, "path": str(path), "way": way})

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def measure(self, rows: int, seconds: float) -> Round:
        """One round."""
        assert self._process.stdout is not None
        self._send({"rows": rows, "seconds": seconds})
        return Round(*json.loads(self._process.stdout.readline()))

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def through_server(server: ServerProcess, depth: str, rows: int, seconds: float) -> Round:
    """One round over gRPC; each call makes, serialises and parses its messages anew."""
    array = images(depth, rows)
    predict = server.method(protos.PREDICTION_SERVICE, "Predict")

    def call() -> Any:
        request = protos.PredictRequest(model_spec={"name": depth})
        tensors.fill_proto(request.inputs["images"], array)
        return tensors.from_proto(predict(request).outputs["scores"])

    process = psutil.Process(server.process.pid)

    def cpu_s() -> float:
        """Of the server and of this client."""
        times = process.cpu_times()
        return float(times.user + times.system) + time.process_time()

    return measure(call, cpu_s, rows, seconds)


def compare(depth: str, batches: Sequence[int], rounds: int, seconds: float, folder: Path) -> None:
    """Print a line for each batch size."""
    exporter = [
        sys.executable,
        "-m",
        "tests.bench.model_server",
        "--export",
        depth,
        str(folder / depth / "1"),
    ]
    subprocess.run(exporter, check=True, capture_output=True)
    flags = [f"--model_name={depth}", f"--model_base_path={folder / depth}"]
    server = ServerProcess(flags, folder / f"{depth}.log").wait_ready()
    ways = {way: InProcess(depth, folder / depth / "1", way) for way in ("signature", "session")}
    try:
        for rows in batches:
            direct: dict[str, list[Round]] = {way: [] for way in ways}
            served = []
            for _ in range(rounds):
                for way, in_process in ways.items():
                    direct[way].append(in_process.measure(rows, seconds))
                served.append(through_server(server, depth, rows, seconds))
            for way, found in direct.items():
                _print_line(f"{depth} batch {rows:>2}, {way:<9}", found, served)
    finally:
        for in_process in ways.values():
            in_process.stop()
        server.stop()


def _print_line(title: str, direct: Sequence[Round], served: Sequence[Round]) -> None:
    pairs = list(zip(direct, served, strict=True))
    ratio = statistics.median(s.rows_per_s / d.rows_per_s for d, s in pairs)
    cpu_ratio = statistics.median(d.cpu_s_per_row / s.cpu_s_per_row for d, s in pairs)
    extra_ms = statistics.median(s.p50_s - d.p50_s for d, s in pairs) * 1e3
    rates = [statistics.median(r.rows_per_s for r in found) for found in (direct, served)]
    times = [statistics.median(r.p50_s for r in found) * 1e3 for found in (direct, served)]
    print(
        f"{title}: in process {rates[0]:6.0f} rows/s, p50 {times[0]:7.2f} ms; "
        f"server {rates[1]:6.0f} rows/s, p50 {times[1]:7.2f} ms; throughput ratio {ratio:.3f} "
        f"(by processor time {cpu_ratio:.3f}), p50 {extra_ms:+.2f} ms",
        flush=True,
    )


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.model_server", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["resnet20", "resnet50"], choices=list(SIZES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--export", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.in_process:
        serve_in_process()
    elif arguments.export:
        export(arguments.export[0], Path(arguments.export[1]))
    else:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        with tempfile.TemporaryDirectory() as folder:
            for depth in arguments.models:
                compare(depth, arguments.batches, arguments.rounds, arguments.seconds, Path(folder))


if __name__ == "__main__":
    main()

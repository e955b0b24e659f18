"""The batch queue and the merging and splitting of tensors, as plain functions."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from serving import protos
from serving.modelserver.batching import BatchingOptions, BatchQueue, BatchScheduler, Task, options_from
from serving.modelserver.batching_servable import BatchingServable, merge, padded_size, split, split_sizes
from serving.modelserver.metrics import Counter, Histogram, Metrics
from serving.modelserver.signature import Signature
from serving.modelserver.status import Code, StatusError, invalid_argument


def options(text: str = "") -> BatchingOptions:
    return options_from(text_format.Parse(text, protos.BatchingParameters()), default_threads=2)


def task(size: int, at: float = 0.0) -> Task:
    return Task({}, size, at)


def test_defaults() -> None:
    found = options()
    assert (found.max_batch_size, found.timeout_s, found.max_enqueued_batches) == (1000, 0.0, 10)
    assert (found.threads, found.run_size, found.split_large) == (2, 1000, False)


@pytest.mark.parametrize(("is_split", "most_rows"), [("false", 8), ("true", 4)])
def test_runs_are_smaller_than_requests_only_where_these_are_split(is_split: str, most_rows: int) -> None:
    sizes = "max_batch_size { value: 8 } max_execution_batch_size { value: 4 }"
    assert options(f"{sizes} enable_large_batch_splitting {{ value: {is_split} }}").run_size == most_rows


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("max_batch_size { value: 0 }", "max_batch_size must be positive; was 0"),
        ("num_batch_threads { value: -1 }", "num_batch_threads must be positive; was -1"),
        ("max_enqueued_batches { value: 0 }", "max_enqueued_batches must be positive; was 0"),
        ("max_execution_batch_size { value: 0 }", "max_execution_batch_size must be positive; was 0"),
        ("batch_timeout_micros { value: -1 }", "must be non-negative"),
        (
            "max_batch_size { value: 8 } allowed_batch_sizes: 4",
            "match max_batch_size; last entry was 4; expected 8",
        ),
        ("max_batch_size { value: 8 } allowed_batch_sizes: [8, 4]", "monotonically increasing"),
        ("max_batch_size { value: 8 } allowed_batch_sizes: [8, 8]", "monotonically increasing"),
        ("max_batch_size { value: 8 } allowed_batch_sizes: [0, 8]", "monotonically increasing"),
        ("max_batch_size { value: 8 } max_execution_batch_size { value: 9 }", "at most max_batch_size"),
        (
            (
                "enable_large_batch_splitting { value: true } max_execution_batch_size { value: 4 }"
                " allowed_batch_sizes: 8"
            ),
            "equal to max_execution_batch_size",
        ),
    ],
)
def test_parameters_that_contradict_themselves(text: str, part: str) -> None:
    with pytest.raises(StatusError) as caught:
        options(text)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert part in caught.value.message


def test_a_batch_waits_for_its_time_or_until_it_can_grow_no_more() -> None:
    queue = BatchQueue(options("max_batch_size { value: 4 } batch_timeout_micros { value: 500000 }"))
    assert queue.ready_at() is None
    queue.add([task(2, at=10.0)])
    assert queue.ready_at() == 10.5
    assert queue.room() == 2
    queue.add([task(2, at=10.2)])
    assert queue.ready_at() == 0.0
    assert [one.size for one in queue.take()] == [2, 2]
    queue.add([task(3, at=11.0)])
    queue.add([task(2, at=11.1)])  # does not fit: the first batch is closed
    assert queue.ready_at() == 0.0
    assert [one.size for one in queue.take()] == [3]
    assert queue.ready_at() == 11.6


def test_a_full_queue_refuses_and_is_left_as_it_was() -> None:
    queue = BatchQueue(options("max_batch_size { value: 4 } max_enqueued_batches { value: 2 }"))
    queue.add([task(4), task(3)])
    with pytest.raises(StatusError) as caught:
        queue.add([task(1), task(4)])
    assert caught.value.code is Code.UNAVAILABLE
    queue.add([task(1)])
    assert [one.size for one in queue.drain()] == [4, 3, 1]
    assert queue.ready_at() is None


def test_a_queue_that_is_always_full_leaves_the_others_their_turn() -> None:
    scheduler = BatchScheduler(options("max_batch_size { value: 1 } num_batch_threads { value: 1 }"))
    ran: list[str] = []
    has_ended = threading.Event()

    def run_busy(_: list[Task]) -> None:
        ran.append("busy")
        scheduler.submit(other, lambda _: [task(1)])
        if len(ran) < 10:
            scheduler.submit(busy, lambda _: [task(1)])
        else:
            has_ended.set()

    busy = scheduler.register(run_busy)
    other = scheduler.register(lambda _: ran.append("other"))
    scheduler.submit(busy, lambda _: [task(1), task(1)])
    assert has_ended.wait(30)
    assert ran[:4] == ["busy", "other", "busy", "other"]


def test_what_still_waits_as_its_queue_goes_fails() -> None:
    scheduler = BatchScheduler(options("batch_timeout_micros { value: 600000000 }"))
    queue = scheduler.register(lambda _: None)
    (waiting,) = scheduler.submit(queue, lambda _: [task(1)])
    scheduler.unregister(queue)
    with pytest.raises(StatusError, match="The model was unloaded"):
        waiting.done.result(30)


@given(size=st.integers(1, 100), room=st.integers(0, 8), limit=st.integers(1, 8))
def test_splitting_keeps_every_row(size: int, room: int, limit: int) -> None:
    sizes = split_sizes(size, min(room, limit), limit)
    assert sum(sizes) == size
    assert all(1 <= part <= limit for part in sizes)


def test_merge_pads_rows_and_split_undoes_it() -> None:
    found = options("max_batch_size { value: 8 } allowed_batch_sizes: [1, 4, 8]")
    parts = [{"x": np.array([[1.0], [2.0]])}, {"x": np.array([[3.0]])}]
    merged = merge(parts, padded_size(3, found), found)
    assert merged["x"].tolist() == [[1.0], [2.0], [3.0], [3.0]]
    shares = split([merged["x"] * 2], [2, 1], 4)
    assert [share[0].tolist() for share in shares] == [[[2.0], [4.0]], [[6.0]]]
    assert [padded_size(size, found) for size in (1, 2, 5, 8)] == [1, 4, 8, 8]


@pytest.mark.parametrize("kind", ["number", "text"])
def test_rows_of_different_shapes(kind: str) -> None:
    first: Any = b"5\0" if kind == "text" else 5

    def array(shape: tuple[int, ...]) -> np.ndarray:
        numbers = np.arange(5, 5 + np.prod(shape)).reshape(shape)
        made = numbers.astype(str).astype(bytes).astype(object) if kind == "text" else numbers
        if made.size:
            made[0, 0] = first
        return made

    parts = [{"x": array((2, 2))}, {"x": array((1, 3))}]
    with pytest.raises(StatusError) as caught:
        merge(parts, 3, options())
    assert caught.value.code is Code.FAILED_PRECONDITION
    padding = options("pad_variable_length_inputs: true")
    merged = merge(parts, 3, padding)["x"]
    assert merged[:2, :2].tolist() == parts[0]["x"].tolist()
    assert merged[:2, 2].tolist() == [first, first]  # the array's own first value, as in the original
    assert merged[2].tolist() == parts[1]["x"][0].tolist()
    with pytest.raises(StatusError, match="Got empty tensor in batch of non-empty tensors"):
        merge([{"x": array((1, 0))}, *parts], 4, padding)
    assert merge([{"x": array((1, 0, 2))}, {"x": array((2, 0, 3))}], 3, padding)["x"].shape == (3, 0, 3)


@pytest.mark.parametrize("output", [np.array(1.0), np.zeros(5)])
def test_outputs_that_cannot_be_split(output: np.ndarray) -> None:
    with pytest.raises(StatusError) as caught:
        split([output], [2, 2], 4)
    assert caught.value.code is Code.FAILED_PRECONDITION


class Doubling:
    """A servable of one float32 input, as strict about types as a session."""

    def __init__(self) -> None:
        x, y = {"name": "x:0", "dtype": "DT_FLOAT"}, {"name": "y:0", "dtype": "DT_FLOAT"}
        self.signatures = {"s": Signature.read(protos.SignatureDef(inputs={"x": x}, outputs={"y": y}))}

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        if feeds["x:0"].dtype != np.float32:
            raise invalid_argument(f"Expects arg[0] to be float but {feeds['x:0'].dtype} is provided")
        return [feeds["x:0"] * 2]

    def close(self) -> None:
        pass


def test_a_value_of_the_wrong_type_is_refused_and_does_no_harm_to_its_neighbours() -> None:
    whole_batches = options("max_batch_size { value: 2 } batch_timeout_micros { value: 600000000 }")
    servable = BatchingServable(Doubling(), BatchScheduler(whole_batches), Metrics())

    def run(value: float, dtype: type) -> list[float]:
        doubled: list[float] = servable.run({"x:0": np.array([value], dtype)}, ["y:0"])[0].tolist()
        return doubled

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(run, 1.0, np.float32)
        with pytest.raises(StatusError, match="to be float but float64 is provided"):
            run(2.0, np.float64)
        second = pool.submit(run, 3.0, np.float32)
        try:
            assert (first.result(30), second.result(30)) == ([2.0], [6.0])
        finally:
            servable.close()


def test_metrics_are_written_as_prometheus_reads_them() -> None:
    counter = Counter(":a:count", ["model_name"])
    assert counter.lines() == []
    counter.add('odd "name"\\')
    counter.add('odd "name"\\', by=2)
    assert counter.lines() == ["# TYPE :a:count counter", ':a:count{model_name="odd \\"name\\"\\\\"} 3']
    histogram = Histogram(":a:time", ["m"], [10.0, 18.0])
    for value in (5.0, 10.0, 11.0, 99.0):
        histogram.observe(value, "x")
    assert histogram.lines() == [
        "# TYPE :a:time histogram",
        ':a:time_bucket{m="x",le="10"} 2',
        ':a:time_bucket{m="x",le="18"} 3',
        ':a:time_bucket{m="x",le="+Inf"} 4',
        ':a:time_sum{m="x"} 125',
        ':a:time_count{m="x"} 4',
    ]

"""Rows of many callers that go in together and come out apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import protos
from serving.modelserver.batching import BatchScheduler
from serving.modelserver.batching_servable import BatchingServable, merge, padded_size, split, split_sizes
from serving.modelserver.metrics import Metrics
from serving.modelserver.signature import Signature
from serving.modelserver.status import Code, StatusError, invalid_argument
from tests.modelserver.test_batching import options


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


class Recording:
    """A servable that doubles `x` to `y` and halves it to `z`, and knows how many rows each run had."""

    def __init__(self) -> None:
        x, y, z = ({"name": f"{name}:0", "dtype": "DT_FLOAT"} for name in "xyz")
        nothing = protos.SignatureDef(outputs={"y": y})
        self.signatures = {
            "s": Signature.read(protos.SignatureDef(inputs={"x": x}, outputs={"y": y, "z": z})),
            "of_nothing": Signature.read(nothing),
        }
        self.rows: list[int] = []
        self.is_closed = False

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        self.rows.append(len(feeds["x:0"]))
        found = {"y:0": feeds["x:0"] * 2, "z:0": feeds["x:0"] / 2}
        return [found[name] for name in fetches]

    def close(self) -> None:
        self.is_closed = True


BOTH = ["y:0", "z:0"]


def rows(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.float32)


def batched(text: str, metrics: Metrics | None = None) -> tuple[Recording, BatchingServable]:
    wrapped = Recording()
    return wrapped, BatchingServable(wrapped, BatchScheduler(options(text)), metrics or Metrics())


def test_outputs_come_in_the_order_that_was_asked_for() -> None:
    wrapped, servable = batched("max_batch_size { value: 4 } allowed_batch_sizes: 4")
    for fetches in (BOTH, BOTH[::-1]):
        outputs = dict(zip(fetches, servable.run({"x:0": rows(2)}, fetches), strict=True))
        assert {name: array.tolist() for name, array in outputs.items()} == {"y:0": [0, 2], "z:0": [0, 0.5]}
    assert wrapped.rows == [4, 4]


@pytest.mark.parametrize(("count", "fetches"), [(2, ["y:0"]), (0, BOTH)])
def test_other_outputs_than_a_signatures_and_no_rows_run_alone(count: int, fetches: list[str]) -> None:
    wrapped, servable = batched("max_batch_size { value: 4 } allowed_batch_sizes: 4")
    outputs = servable.run({"x:0": rows(count)}, fetches)
    assert [len(array) for array in outputs] == [count] * len(fetches)
    assert wrapped.rows == [count]


def test_a_large_request_runs_in_parts_that_come_back_as_one() -> None:
    wrapped, servable = batched(
        "max_batch_size { value: 5 } max_execution_batch_size { value: 2 } "
        "enable_large_batch_splitting { value: true } num_batch_threads { value: 1 }"
    )
    doubled, halved = servable.run({"x:0": rows(5)}, BOTH)
    assert doubled.tolist() == (rows(5) * 2).tolist()
    assert halved.tolist() == (rows(5) / 2).tolist()
    assert wrapped.rows == [2, 2, 1]


def test_a_request_may_be_as_large_as_a_batch() -> None:
    wrapped, servable = batched("max_batch_size { value: 4 }")
    assert servable.run({"x:0": rows(4)}, BOTH)[0].tolist() == [0, 2, 4, 6]
    with pytest.raises(StatusError, match="Task size 5 is larger than maximum input batch size 4") as caught:
        servable.run({"x:0": rows(5)}, BOTH)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert wrapped.rows == [4]


def test_a_signature_without_inputs_has_no_rows_to_batch() -> None:
    _, servable = batched("")
    with pytest.raises(StatusError, match="must have at least one input tensor") as caught:
        servable.run({}, ["y:0"])
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_rows_of_different_ranks_cannot_be_padded_alike() -> None:
    parts: list[dict[str, np.ndarray]] = [{"x": np.zeros((1, 2))}, {"x": np.zeros((1, 2, 2))}]
    with pytest.raises(StatusError, match="Tensors with name 'x' from different tasks have different ranks"):
        merge(parts, 2, options("pad_variable_length_inputs: true"))


def test_each_request_is_timed_until_it_runs() -> None:
    metrics = Metrics()
    _, servable = batched('batch_timeout_micros { value: 20000 } thread_pool_name { value: "p" }', metrics)
    for _ in range(2):
        servable.run({"x:0": rows(1)}, BOTH)
    lines = metrics.queuing_latency.lines()
    assert lines[-1] == ':tensorflow:serving:batching_session:queuing_latency_count{thread_pool_name="p"} 2'
    assert float(lines[-2].rpartition(" ")[2]) >= 2 * 20_000  # microseconds


def test_a_servable_is_closed_with_its_batching_and_left_by_one_that_is_detached() -> None:
    wrapped, servable = batched("")
    servable.run({"x:0": rows(1)}, BOTH)
    servable.detach()
    assert not wrapped.is_closed
    servable.close()
    assert wrapped.is_closed

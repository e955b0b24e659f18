"""What batching parameters mean, the queues of batches, and whose turn it is."""

from __future__ import annotations

import threading

import pytest
from google.protobuf import text_format

from serving import protos
from serving.modelserver.batching import BatchingOptions, BatchQueue, BatchScheduler, Task, options_from
from serving.modelserver.status import Code, StatusError


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

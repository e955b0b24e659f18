"""Joining requests of many callers into one run, as the original's batching session does.

Queues decide without a clock or a lock of their own (`BatchQueue`); a scheduler drives all queues of
the server from a fixed number of threads (`BatchScheduler`); `BatchingServable` stands before a session
and merges and splits the tensors.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from serving.errors import without_frames
from serving.modelserver.status import Code, StatusError, from_exception, invalid_argument

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class BatchingOptions:
    """What a batching parameters file says, with the original's defaults.

    Attributes:
        max_batch_size: the most rows in a batch; with splitting, in one request.
        timeout_s: how long a batch that is not full waits for more.
        max_enqueued_batches: the most batches that wait in one queue.
        threads: how many batches run at once, over all models.
        pool_name: a label of the metrics.
        allowed_sizes: sizes that batches are padded to; empty means any.
        pad_inputs: pad inputs whose rows differ in shape to the largest of the batch.
        split_large: split a request over several batches.
        max_execution_size: with splitting, the most rows in one run.
    """

    max_batch_size: int
    timeout_s: float
    max_enqueued_batches: int
    threads: int
    pool_name: str
    allowed_sizes: tuple[int, ...]
    pad_inputs: bool
    split_large: bool
    max_execution_size: int

    @property
    def run_size(self) -> int:
        """The most rows in one run."""
        return self.max_execution_size if self.split_large else self.max_batch_size


def options_from(message: Any, default_threads: int) -> BatchingOptions:
    """Checked options from a `BatchingParameters` message; raises StatusError."""

    def value(name: str, default: Any) -> Any:
        return getattr(message, name).value if message.HasField(name) else default

    max_batch_size = value("max_batch_size", 1000)
    options = BatchingOptions(
        max_batch_size=max_batch_size,
        timeout_s=value("batch_timeout_micros", 0) / 1e6,
        max_enqueued_batches=value("max_enqueued_batches", 10),
        threads=value("num_batch_threads", default_threads),
        pool_name=value("thread_pool_name", "batch_threads"),
        allowed_sizes=tuple(message.allowed_batch_sizes),
        pad_inputs=message.pad_variable_length_inputs,
        split_large=value("enable_large_batch_splitting", default=False),
        max_execution_size=value("max_execution_batch_size", max_batch_size),
    )
    _check(options)
    return options


def _check(options: BatchingOptions) -> None:
    positive = {
        "max_batch_size": options.max_batch_size,
        "max_enqueued_batches": options.max_enqueued_batches,
        "num_batch_threads": options.threads,
        "max_execution_batch_size": options.max_execution_size,
    }
    for name, number in positive.items():
        if number < 1:
            raise invalid_argument(f"{name} must be positive; was {number}")
    if options.timeout_s < 0:
        raise invalid_argument("batch_timeout_micros must be non-negative")
    if options.max_execution_size > options.max_batch_size:
        raise invalid_argument("max_execution_batch_size must be at most max_batch_size")
    sizes = options.allowed_sizes
    if not sizes:
        return
    if any(later <= earlier for earlier, later in itertools.pairwise(sizes)) or sizes[0] < 1:
        raise invalid_argument("allowed_batch_sizes entries must be monotonically increasing")
    if sizes[-1] != options.run_size:
        limit = "be equal to max_execution_batch_size" if options.split_large else "match max_batch_size"
        raise invalid_argument(
            f"Last entry in allowed_batch_sizes must {limit}; last entry was {sizes[-1]}; "
            f"expected {options.run_size}"
        )


@dataclass(frozen=True)
class Task:
    """Rows of one caller that run together; `done` gets their share of the outputs."""

    feeds: Tensors
    size: int
    enqueued_at: float
    done: Future[list[np.ndarray]] = field(default_factory=Future)


class BatchQueue:
    """The batches that wait for one combination of inputs and outputs."""

    def __init__(self, options: BatchingOptions) -> None:
        self._options = options
        self._batches: list[list[Task]] = []

    def add(self, tasks: Sequence[Task]) -> None:
        """Append tasks, none larger than a batch; raises StatusError UNAVAILABLE if not all have room."""
        batches = [list(batch) for batch in self._batches]
        for task in tasks:
            if not batches or _rows(batches[-1]) + task.size > self._options.run_size:
                batches.append([])
            batches[-1].append(task)
        if len(batches) > self._options.max_enqueued_batches:
            raise StatusError(
                Code.UNAVAILABLE, "The batch scheduling queue to which this task was submitted is full"
            )
        self._batches = batches

    def room(self) -> int:
        """How many rows the open batch still takes; 0 if none is open."""
        return self._options.run_size - _rows(self._batches[-1]) if self._batches else 0

    def ready_at(self) -> float | None:
        """When the first batch may run: at once (0.0) if it cannot grow any more; None if there is none."""
        if not self._batches:
            return None
        first = self._batches[0]
        if len(self._batches) > 1 or _rows(first) >= self._options.run_size:
            return 0.0
        return first[0].enqueued_at + self._options.timeout_s

    def take(self) -> list[Task]:
        """The first batch."""
        return self._batches.pop(0)

    def drain(self) -> list[Task]:
        """Take out and return all tasks that wait."""
        tasks = [task for batch in self._batches for task in batch]
        self._batches = []
        return tasks


def _rows(batch: Sequence[Task]) -> int:
    return sum(task.size for task in batch)


Process = Callable[[list[Task]], None]


class BatchScheduler:
    """Threads that run the batches of every queue; the queues take turns, as in the original."""

    def __init__(self, options: BatchingOptions) -> None:
        self.options = options
        self._changed = threading.Condition()
        self._queues: dict[BatchQueue, Process] = {}
        for number in range(options.threads):
            threading.Thread(target=self._work, name=f"{options.pool_name}-{number}", daemon=True).start()

    def register(self, process: Process) -> BatchQueue:
        """A new queue, whose batches `process` runs."""
        queue = BatchQueue(self.options)
        with self._changed:
            self._queues[queue] = process
        return queue

    def unregister(self, queue: BatchQueue) -> None:
        """Forget a queue; tasks that still wait fail."""
        with self._changed:
            self._queues.pop(queue, None)
            tasks = queue.drain()
        for task in tasks:
            task.done.set_exception(StatusError(Code.UNAVAILABLE, "The model was unloaded"))

    def submit(self, queue: BatchQueue, make_tasks: Callable[[int], list[Task]]) -> list[Task]:
        """Add the tasks that `make_tasks` makes of a request, given the room in the open batch."""
        with self._changed:
            tasks = make_tasks(queue.room())
            queue.add(tasks)
            self._changed.notify()
        return tasks

    def _work(self) -> None:
        while True:
            with self._changed:
                queue, wait_s = self._next(time.monotonic())
                if queue is None:
                    self._changed.wait(timeout=wait_s)
                    continue
                process, batch = self._queues.pop(queue), queue.take()
                self._queues[queue] = process  # the other queues have their turn first
                self._changed.notify()  # another thread may have to wait for the next deadline now
            process(batch)
            del process, batch  # the next ones may be a long time coming

    def _next(self, now: float) -> tuple[BatchQueue | None, float | None]:
        """The next queue in turn that has a ready batch; else None and how long to wait for one."""
        waits_s = []
        for queue in self._queues:
            at = queue.ready_at()
            if at is None:
                continue
            if at <= now:
                return queue, None
            waits_s.append(at - now)
        return None, min(waits_s, default=None)


def finish(batch: Sequence[Task], run: Callable[[], list[list[np.ndarray]]]) -> None:
    """Run a batch and give each task its share of the outputs, or the error."""
    try:
        shares = run()
    except Exception as error:
        status = without_frames(from_exception(error))
        for task in batch:
            task.done.set_exception(status)
        return
    for task, share in zip(batch, shares, strict=True):
        task.done.set_result(share)

"""A servable whose runs are batched: rows of many callers go in together and come out separately."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

import numpy as np

from serving.modelserver.batching import BatchingOptions, BatchQueue, BatchScheduler, Task, Tensors, finish
from serving.modelserver.manager import Servable
from serving.modelserver.metrics import Metrics
from serving.modelserver.servable import data_type_of
from serving.modelserver.signature import Signature
from serving.modelserver.status import StatusError, failed_precondition, invalid_argument

Key = tuple[tuple[str, ...], tuple[str, ...]]


class BatchingServable:
    """Stands before `wrapped`.

    As in the original, only the combinations of inputs and outputs that a signature has are batched; a
    request for fewer outputs runs alone, and so does one with the wrong types, which is then refused.
    """

    def __init__(self, wrapped: Servable, scheduler: BatchScheduler, metrics: Metrics) -> None:
        self._wrapped = wrapped
        self._scheduler = scheduler
        self._metrics = metrics
        self._types = {
            _key_of(signature): {info.name: info.dtype for info in signature.inputs.values()}
            for signature in wrapped.signatures.values()
        }
        self._lock = threading.Lock()
        self._queues: dict[Key, BatchQueue] = {}

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """Those of the wrapped servable."""
        return self._wrapped.signatures

    def run(self, feeds: Tensors, fetches: Sequence[str]) -> list[np.ndarray]:
        """Run in a batch with others; raises StatusError."""
        key = (tuple(sorted(feeds)), tuple(sorted(fetches)))
        types = self._types.get(key)
        if types is None or any(data_type_of(array.dtype) != types[name] for name, array in feeds.items()):
            # Merged, a wrong type would be converted to that of its neighbours, or theirs to it.
            return self._wrapped.run(feeds, fetches)
        size = _rows_of(feeds)
        if size == 0:
            return self._wrapped.run(feeds, fetches)
        options, now = self._scheduler.options, time.monotonic()
        if size > options.max_batch_size:
            raise invalid_argument(
                f"Task size {size} is larger than maximum input batch size {options.max_batch_size}"
            )

        def make_tasks(room: int) -> list[Task]:
            sizes = split_sizes(size, room, options.run_size) if options.split_large else [size]
            return [Task(part, rows, now) for part, rows in zip(_cut(feeds, sizes), sizes, strict=True)]

        tasks = self._scheduler.submit(self._queue(key), make_tasks)
        shares = [task.done.result() for task in tasks]
        if len(shares) == 1:
            outputs = shares[0]
        else:
            outputs = [np.concatenate(parts) for parts in zip(*shares, strict=True)]
        by_name = dict(zip(key[1], outputs, strict=True))
        return [by_name[name] for name in fetches]

    def _queue(self, key: Key) -> BatchQueue:
        with self._lock:
            if key not in self._queues:
                self._queues[key] = self._scheduler.register(lambda batch: self._process(key, batch))
            return self._queues[key]

    def _process(self, key: Key, batch: list[Task]) -> None:
        now = time.monotonic()
        options = self._scheduler.options
        for task in batch:
            self._metrics.queuing_latency.observe((now - task.enqueued_at) * 1e6, options.pool_name)

        def run() -> list[list[np.ndarray]]:
            sizes = [task.size for task in batch]
            feeds = merge([task.feeds for task in batch], padded_size(sum(sizes), options), options)
            outputs = self._wrapped.run(feeds, key[1])
            return split(outputs, sizes, next(len(array) for array in feeds.values()))

        finish(batch, run)

    def detach(self) -> None:
        """Free the queues, and leave the wrapped servable as it is; call it only while nothing runs."""
        with self._lock:
            queues = list(self._queues.values())
        for queue in queues:
            self._scheduler.unregister(queue)

    def close(self) -> None:
        """Free the queues and the wrapped servable."""
        self.detach()
        self._wrapped.close()


def _key_of(signature: Signature) -> Key:
    inputs = sorted({info.name for info in signature.inputs.values()})
    return tuple(inputs), tuple(signature.output_names)


def _rows_of(feeds: Tensors) -> int:
    """The 0th dimension that all inputs share; raises StatusError if they do not."""
    if not feeds:
        raise invalid_argument("Batching session Run() must have at least one input tensor")
    if any(array.ndim == 0 for array in feeds.values()):
        raise invalid_argument("Batching Run() input tensors must have at least one dimension.")
    sizes = {len(array) for array in feeds.values()}
    if len(sizes) > 1:
        raise invalid_argument("Batching Run() input tensors must have equal 0th-dimension size.")
    return sizes.pop()


def split_sizes(size: int, room: int, limit: int) -> list[int]:
    """How `size` rows are cut: what the open batch has room for, then whole batches, then the rest."""
    sizes = [min(size, room)] if room else []
    left = size - sum(sizes)
    while left > 0:
        sizes.append(min(left, limit))
        left -= sizes[-1]
    return sizes


def _cut(feeds: Tensors, sizes: Sequence[int]) -> list[Tensors]:
    if len(sizes) == 1:
        return [feeds]
    ends = np.cumsum(sizes).tolist()
    return [
        {name: array[end - size : end] for name, array in feeds.items()}
        for size, end in zip(sizes, ends, strict=True)
    ]


def padded_size(size: int, options: BatchingOptions) -> int:
    """The smallest allowed size that holds `size` rows."""
    return next((allowed for allowed in options.allowed_sizes if allowed >= size), size)


def merge(parts: Sequence[Tensors], size: int, options: BatchingOptions) -> dict[str, np.ndarray]:
    """One set of inputs from many, filled up to `size` rows with the first row of the last.

    Raises:
        StatusError: FAILED_PRECONDITION, if rows differ in shape and padding is off.
    """
    merged = {}
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        if len({array.shape[1:] for array in arrays}) > 1:
            arrays = _padded_rows(name, arrays, options)
        missing = size - sum(len(array) for array in arrays)
        if missing:
            arrays = [*arrays, np.repeat(arrays[-1][:1], missing, axis=0)]
        merged[name] = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
    return merged


def _padded_rows(name: str, arrays: list[np.ndarray], options: BatchingOptions) -> list[np.ndarray]:
    if not options.pad_inputs:
        raise failed_precondition(
            f"Tensors with name '{name}' from different tasks have different shapes and padding is turned "
            "off.Set pad_variable_length_inputs to true, or ensure that all tensors with the same name"
            "have equal dimensions starting with the first dim."
        )
    if len({array.ndim for array in arrays}) > 1:
        raise invalid_argument(f"Tensors with name '{name}' from different tasks have different ranks")
    shape = np.max([array.shape[1:] for array in arrays], axis=0)
    return [_padded(array, shape) for array in arrays]


def _padded(array: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Each row padded at its ends to `shape`; as in the original, with the array's first value."""
    padded = np.empty((len(array), *shape), array.dtype)
    if padded.size == 0:
        return padded
    if array.size == 0:
        raise invalid_argument("Got empty tensor in batch of non-empty tensors.")
    padded[...] = array[(slice(1),) * array.ndim]
    padded[tuple(slice(size) for size in array.shape)] = array
    return padded


def split(outputs: Sequence[np.ndarray], sizes: Sequence[int], total: int) -> list[list[np.ndarray]]:
    """Each task's share of the outputs.

    Args:
        outputs: what the run gave.
        sizes: the rows of each task.
        total: the rows that went in, padding included.
    """
    for array in outputs:
        _check_rows(array, total)
    ends = np.cumsum(sizes).tolist()
    return [[array[end - size : end] for array in outputs] for size, end in zip(sizes, ends, strict=True)]


def _check_rows(array: np.ndarray, total: int) -> None:
    error: StatusError | None = None
    if array.ndim == 0:
        error = failed_precondition("Batched output tensor has 0 dimensions")
    elif len(array) != total:
        error = failed_precondition(
            "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the "
            "input tensors"
        )
    if error is not None:
        raise error

"""tf.distribute: one model on several devices, or on several machines that `TF_CONFIG` names.

Each step's batch is the global one; every replica computes its share of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from training.errors import BadInput, TrainingError

# what a collective operation raises if one of its participants has gone
_GONE = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
    tf.errors.UnavailableError,
)


@dataclass(frozen=True)
class Distribution:
    """How training is spread; `chief` is the one process that reports, saves and publishes."""

    strategy: tf.distribute.Strategy | None = None
    chief: bool = True

    @property
    def replicas(self) -> int:
        """How many copies of the model share a batch."""
        return 1 if self.strategy is None else int(self.strategy.num_replicas_in_sync)

    def shared(self, batches: tf.data.Dataset) -> Any:
        """The batches, each divided among the replicas."""
        return batches if self.strategy is None else self.strategy.experimental_distribute_dataset(batches)

    @contextmanager
    def scope(self) -> Iterator[None]:
        """The context in which variables are made and training runs.

        Raises `TrainingError` if another worker has gone.
        """
        with self._telling_of_others(), nullcontext() if self.strategy is None else self.strategy.scope():
            yield

    def wait_for_all(self) -> None:
        """Returns when each of several workers has got here; raises `TrainingError` if one has gone."""
        self.all_at(0)

    def all_at(self, number: int) -> bool:
        """Whether each of several workers has got here with this number; waits until they have.

        Raises `TrainingError` if one has gone.
        """
        if self.strategy is None or not self._is_of_workers:
            return True
        here = self.strategy.run(lambda: tf.constant(number))
        with self._telling_of_others():
            return int(self.strategy.reduce("SUM", here, axis=None)) == number * self.replicas

    @contextmanager
    def _telling_of_others(self) -> Iterator[None]:
        try:
            yield
        except _GONE as error:
            if not self._is_of_workers:
                raise
            raise TrainingError(
                "another worker ended first; start all of them again, with --resume"
            ) from error

    @property
    def _is_of_workers(self) -> bool:
        return isinstance(self.strategy, tf.distribute.MultiWorkerMirroredStrategy)


def distribution(name: str, before_waiting: Callable[[], None] = lambda: None) -> Distribution:
    """The distribution of a name in `config.STRATEGIES`; must be called before anything else is computed.

    One of several workers waits for all the others, however long that takes; `before_waiting` comes first.
    """
    if name == "none":
        return Distribution()
    if name == "mirrored":
        devices = [device.name for device in tf.config.list_logical_devices("GPU")]
        devices = devices or [device.name for device in tf.config.list_logical_devices("CPU")]
        return Distribution(tf.distribute.MirroredStrategy(devices))
    config = os.environ.get("TF_CONFIG")
    task = _task(config)
    before_waiting()
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.OpError as error:  # an invalid address, or one that another process listens on
        raise BadInput(f"TF_CONFIG cannot be used ({error.message}): {config}") from error
    return Distribution(strategy, chief=task == ("worker", 0))


def _task(config: str | None) -> tuple[str, int]:
    """This process's (type, index) of TF_CONFIG; a job called "chief" counts as worker 0."""
    if not config:
        raise BadInput(
            '--strategy multiworker needs TF_CONFIG: {"cluster": {"worker": [...]}, "task": {...}}'
        )
    try:
        read = json.loads(config)
        kind, index = str(read["task"]["type"]), int(read["task"]["index"])
        range(len(read["cluster"][kind])).index(index)
    except (ValueError, LookupError, TypeError) as error:
        raise BadInput(f"TF_CONFIG cannot be used ({error!r}): {config}") from error
    return ("worker", 0) if kind == "chief" else (kind, index + ("chief" in read["cluster"]))

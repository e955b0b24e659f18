"""tf.distribute: one model on several devices, or on several machines that `TF_CONFIG` names.

Each step's batch is the global one; every replica computes its share of it.
"""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from training.errors import BadInput, TrainingError


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

    def scope(self) -> AbstractContextManager[Any]:
        """The context in which variables are made and training runs."""
        return nullcontext() if self.strategy is None else self.strategy.scope()

    def wait_for_all(self) -> None:
        """Returns when each of several workers has come here; raises `TrainingError` if one has gone."""
        if not isinstance(self.strategy, tf.distribute.MultiWorkerMirroredStrategy):
            return
        try:
            self.strategy.reduce("SUM", self.strategy.run(lambda: tf.ones(())), axis=None)
        except tf.errors.OpError as error:
            raise TrainingError(
                "another worker ended first; start all of them again, with --resume"
            ) from error


def distribution(name: str) -> Distribution:
    """The distribution of a name in `config.STRATEGIES`; must come before anything else is computed."""
    if name == "none":
        return Distribution()
    if name == "mirrored":
        devices = [device.name for device in tf.config.list_logical_devices("GPU")]
        devices = devices or [device.name for device in tf.config.list_logical_devices("CPU")]
        return Distribution(tf.distribute.MirroredStrategy(devices))
    config = os.environ.get("TF_CONFIG")
    task = _task(config)
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.OpError as error:  # an address that is none, or that another process listens on
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

"""One training loop for every recipe: schedule, early stopping, checkpoints, distribution."""

# mypy: allow-subclassing-any
from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from training.checkpoint import Checkpoint, Weights
from training.config import Hyperparameters
from training.distribution import Distribution
from training.errors import BadInput
from training.history import History
from training.pipeline import Arrays, Examples, evaluation_batches, training_batches
from training.precision import computing_in
from training.progress import Report
from training.recipes.base import Interface, Problem, Variant


@dataclass(frozen=True)
class Run:
    """Where a run happens, as opposed to what it learns."""

    report: Report
    checkpoint: Checkpoint | None = None
    resume: bool = False
    tensorboard: Path | None = None
    distribution: Distribution = field(default_factory=Distribution)


def schedule(
    values: Hyperparameters, steps_per_epoch: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """A cosine down to zero (Loshchilov & Hutter, 2017) after a linear warm-up (Goyal et al., 2017)."""
    steps = max(2, values.epochs * steps_per_epoch)
    warmup = min(max(1, round(steps * values.warmup)), steps - 1)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        decay_steps=steps - warmup,
        warmup_target=values.learning_rate,
        warmup_steps=warmup,
    )


def compiled(
    interface: Interface, variant: Variant, values: Hyperparameters, steps_per_epoch: int
) -> keras.Model:
    """A fresh model of this variant, its weights made, ready to be trained."""
    keras.utils.set_random_seed(values.seed)
    with computing_in(values.mixed_precision):
        model = interface.built(variant.build())
    model.compile(
        optimizer=keras.optimizers.AdamW(schedule(values, steps_per_epoch), weight_decay=values.weight_decay),
        loss=variant.loss,
        loss_weights=variant.loss_weights,
        metrics=variant.metrics,
    )
    return model


def fit(problem: Problem, variant: Variant, values: Hyperparameters, run: Run) -> tuple[keras.Model, History]:
    """Trains one variant; the model comes back with the weights of its best epoch."""
    replicas = run.distribution.replicas
    train = _divisible(problem.train, replicas)
    if values.batch_size % replicas:
        raise BadInput(f"a batch of {values.batch_size} cannot be shared by {replicas} replicas")
    steps = math.ceil(len(train) / values.batch_size)
    with run.distribution.scope():
        model = compiled(problem.interface, variant, values, steps)
        keeper = _Keeper(values.patience, run)
        finished = keeper.resume(model) if run.resume else False
        if not finished:
            _fit(model, keeper, problem, train, values, steps)
        model.set_weights(keeper.best_weights)
    return model, keeper.history


def _fit(
    model: keras.Model,
    keeper: _Keeper,
    problem: Problem,
    train: Examples,
    values: Hyperparameters,
    steps: int,
) -> None:
    first, run = len(keeper.history.epochs), keeper.run
    batches = training_batches(train, values.batch_size, values.seed, first, values.augment)
    callbacks: list[keras.callbacks.Callback] = [keeper]
    if run.tensorboard is not None:
        callbacks.append(keras.callbacks.TensorBoard(run.tensorboard))
    validation = _divisible(problem.validation, run.distribution.replicas)
    model.fit(
        batches.map(_unwrapped(problem.interface)),
        initial_epoch=first,
        epochs=values.epochs,
        steps_per_epoch=steps,
        validation_data=evaluation_batches(validation, 64 * run.distribution.replicas).map(
            _unwrapped(problem.interface)
        ),
        callbacks=callbacks,
        verbose=0,
    )
    if run.checkpoint and run.distribution.chief:
        run.checkpoint.save(model, keeper.history, keeper.best_weights, finished=True)


def _divisible(examples: Examples, replicas: int) -> Examples:
    """All but the last few examples, so that every replica has its share of every batch."""
    return examples.take(np.arange(len(examples) - len(examples) % replicas))


class _Keeper(keras.callbacks.Callback):
    """Keeps the best weights, saves the state of each epoch, ends training when nothing gets better."""

    def __init__(self, patience: int, run: Run) -> None:
        super().__init__()
        self.patience = patience
        self.run = run
        self.history = History()
        self.best_weights: Weights = []
        self.started = time.monotonic()

    def resume(self, model: keras.Model) -> bool:
        """Goes on where the checkpoint is, if there is one; whether that run had finished."""
        restored = self.run.checkpoint.restore(model) if self.run.checkpoint else None
        if restored is None:
            return False
        self.history, self.best_weights, finished = restored
        self.started -= self.history.seconds
        return finished

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        metrics = {name: float(value) for name, value in (logs or {}).items()}
        if not math.isfinite(metrics["loss"]):
            raise BadInput(f"the loss is {metrics['loss']} in epoch {epoch + 1}; try a lower --learning-rate")
        if self.history.add(metrics):
            self.best_weights = self.model.get_weights()
        self.history.seconds = time.monotonic() - self.started
        if self.run.distribution.chief:
            self.run.report(epoch, metrics)
            if self.run.checkpoint:
                self.run.checkpoint.save(self.model, self.history, self.best_weights, finished=False)
        if self.history.should_stop(self.patience):
            self.model.stop_training = True


def _unwrapped(interface: Interface) -> Callable[[Any, Any], tuple[Any, Any]]:
    """A model of one input takes the tensor itself, and one of one output is compared with a tensor."""
    single_input, single_output = len(interface.inputs) == 1, len(interface.outputs) == 1

    def unwrap(inputs: Any, targets: Any) -> tuple[Any, Any]:
        return (
            next(iter(inputs.values())) if single_input else inputs,
            next(iter(targets.values())) if single_output else targets,
        )

    return unwrap


def predict(interface: Interface, model: keras.Model, examples: Examples) -> Arrays:
    """The model's named outputs for all the examples, as `Interface.call` gives them."""
    call = tf.function(lambda inputs: interface.call(model, inputs), reduce_retracing=True)
    answers = [call(inputs) for inputs, _ in evaluation_batches(examples)]
    return {name: np.concatenate([answer[name].numpy() for answer in answers]) for name in interface.outputs}

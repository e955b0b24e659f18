"""One training loop for every recipe: schedule, early stopping, progress."""

# mypy: allow-subclassing-any
from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from training.config import Hyperparameters
from training.pipeline import Examples, evaluation_batches, training_batches
from training.recipes.base import Problem, Variant

Report = Callable[[int, dict[str, float]], None]


@dataclass
class History:
    """What happened: `epochs[i]` holds the means of epoch i, with `val_` in front those of validation."""

    epochs: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = -1
    best_loss: float = math.inf
    seconds: float = 0.0

    def add(self, metrics: dict[str, float]) -> bool:
        """Notes an epoch, and says whether it is the best so far."""
        self.epochs.append(metrics)
        better = metrics["val_loss"] < self.best_loss
        if better:
            self.best_epoch, self.best_loss = len(self.epochs) - 1, metrics["val_loss"]
        return better

    def should_stop(self, patience: int) -> bool:
        """Whether `patience` epochs went by without a better one."""
        return len(self.epochs) - 1 - self.best_epoch >= patience


def schedule(
    values: Hyperparameters, steps_per_epoch: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """A cosine down to zero (Loshchilov & Hutter, 2017) after a linear warm-up (Goyal et al., 2017)."""
    steps = max(1, values.epochs * steps_per_epoch)
    warmup = max(1, round(steps * values.warmup))
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        decay_steps=max(1, steps - warmup),
        warmup_target=values.learning_rate,
        warmup_steps=warmup,
    )


def compiled(variant: Variant, values: Hyperparameters, steps_per_epoch: int) -> keras.Model:
    """A fresh model of this variant, ready to be trained."""
    keras.utils.set_random_seed(values.seed)
    model = variant.build()
    model.compile(
        optimizer=keras.optimizers.AdamW(schedule(values, steps_per_epoch), weight_decay=values.weight_decay),
        loss=variant.loss,
        loss_weights=variant.loss_weights,
        metrics=variant.metrics,
    )
    return model


def fit(
    problem: Problem, variant: Variant, values: Hyperparameters, report: Report
) -> tuple[keras.Model, History]:
    """Trains one variant; the model comes back with the weights of its best epoch."""
    started = time.monotonic()
    steps = math.ceil(len(problem.train) / values.batch_size)
    model = compiled(variant, values, steps)
    batches = training_batches(problem.train, values.batch_size, values.seed, 0, values.augment)
    keeper = _Keeper(values.patience, report)
    model.fit(
        batches.map(_unwrapped(problem)),
        epochs=values.epochs,
        steps_per_epoch=steps,
        validation_data=evaluation_batches(problem.validation).map(_unwrapped(problem)),
        callbacks=[keeper],
        verbose=0,
    )
    model.set_weights(keeper.best_weights)
    keeper.history.seconds = time.monotonic() - started
    return model, keeper.history


class _Keeper(keras.callbacks.Callback):
    """Keeps the best weights and ends training when nothing gets better."""

    def __init__(self, patience: int, report: Report) -> None:
        super().__init__()
        self.patience = patience
        self.report = report
        self.history = History()
        self.best_weights: list[Any] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        metrics = {name: float(value) for name, value in (logs or {}).items()}
        if self.history.add(metrics):
            self.best_weights = self.model.get_weights()
        self.report(epoch, metrics)
        if self.history.should_stop(self.patience):
            self.model.stop_training = True


def _unwrapped(problem: Problem) -> Callable[[Any, Any], tuple[Any, Any]]:
    """A model of one input takes the tensor itself, and one of one output is compared with a tensor."""
    single_input = len(problem.interface.inputs) == 1
    single_output = len(problem.interface.outputs) == 1

    def unwrap(inputs: Any, targets: Any) -> tuple[Any, Any]:
        return (
            next(iter(inputs.values())) if single_input else inputs,
            next(iter(targets.values())) if single_output else targets,
        )

    return unwrap


def predict(problem: Problem, model: keras.Model, examples: Examples) -> dict[str, np.ndarray[Any, Any]]:
    """The model's named outputs for all the examples, as `Interface.call` gives them."""
    import tensorflow as tf

    call = tf.function(lambda inputs: problem.interface.call(model, inputs), reduce_retracing=True)
    answers = [call(inputs) for inputs, _ in evaluation_batches(examples)]
    return {
        name: np.concatenate([answer[name].numpy() for answer in answers])
        for name in problem.interface.outputs
    }

"""One training loop for every recipe: schedule, early stopping, checkpoints, distribution."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from training.checkpoint import Checkpoint, Weights
from training.config import Hyperparameters
from training.distribution import Distribution
from training.errors import BadInput, TrainingError
from training.history import History
from training.pipeline import Arrays, Examples, evaluation_batches, training_batches
from training.precision import computing_in
from training.progress import Report
from training.recipes.base import Interface, Problem, Variant

_VALIDATION_BATCH = 128  # examples a replica


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
    """A cosine down to zero (Loshchilov & Hutter, 2017) after a linear warm-up (Goyal et al., 2017).

    The warm-up begins one increment above zero, since at zero the first step would be wasted.
    """
    steps = max(2, values.epochs * steps_per_epoch)
    warmup = min(max(1, round(steps * values.warmup)), steps - 1)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=values.learning_rate / (warmup + 1),
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
        jit_compile=False,  # on a processor XLA's convolutions take twice as long
    )
    model.optimizer.build(model.trainable_variables)
    return model


def _make_metrics(model: keras.Model, strategy: tf.distribute.Strategy, batch: Any) -> None:
    """Makes the metrics' variables by one eager validation step: a distributed graph cannot make them."""
    strategy.run(_without_result(model.test_step), (batch,))


def fit(problem: Problem, variant: Variant, values: Hyperparameters, run: Run) -> tuple[keras.Model, History]:
    """Trains one variant; the model comes back with the weights of its best epoch.

    Every epoch ends with validation, a report and a checkpoint; only the chief of several workers does the
    last two. Raises `TrainingError` when the loss, of training or of validation, is no longer a number, when
    there is no memory, and when another worker has gone.
    """
    problem = _shared_out(problem, values.batch_size, run.distribution.replicas)
    steps_per_epoch = math.ceil(len(problem.train) / values.batch_size)
    with run.distribution.scope():
        model = compiled(problem.interface, variant, values, steps_per_epoch)
        state = _State()
        if run.resume and run.checkpoint:
            state = _State.restored(run.checkpoint, model) or state
        if not run.distribution.all_at(len(state.history.epochs)):
            raise BadInput(
                f"this worker goes on after epoch {len(state.history.epochs)}, and another does not; --resume"
                " needs a folder in --out that all the workers share"
            )
        try:
            if not state.finished:
                _epochs(model, state, problem, values, steps_per_epoch, run)
        except tf.errors.ResourceExhaustedError as error:
            raise TrainingError(
                f"there is no memory to train on batches of {values.batch_size}; lower --batch-size"
            ) from error
        model.set_weights(state.best)
    return model, state.history


@dataclass
class _State:
    """What a run has come to, besides the model and its optimizer."""

    history: History = field(default_factory=History)
    best: Weights = field(default_factory=list)
    finished: bool = False

    @classmethod
    def restored(cls, checkpoint: Checkpoint, model: keras.Model) -> _State | None:
        """The state in the checkpoint, whose weights go into the model; None if there is no checkpoint."""
        found = checkpoint.restore(model)
        return None if found is None else cls(*found)


def _epochs(
    model: keras.Model,
    state: _State,
    problem: Problem,
    values: Hyperparameters,
    steps_per_epoch: int,
    run: Run,
) -> None:
    first, spread = len(state.history.epochs), run.distribution
    as_called = _as_called(problem.interface)
    batches = training_batches(problem.train, values.batch_size, values.seed, first, values.augment)
    batches = batches.map(as_called)
    validation = evaluation_batches(problem.validation, _VALIDATION_BATCH * spread.replicas).map(as_called)
    if spread.strategy is not None:
        _make_metrics(model, spread.strategy, next(iter(validation)))
    steps = _Steps(model, spread)
    feed, validation = iter(spread.shared(batches)), spread.shared(validation)
    started = time.monotonic() - state.history.seconds
    logs = _TensorBoard(run.tensorboard) if run.tensorboard and spread.chief else None
    for epoch in range(first, values.epochs):
        metrics = steps.train(feed, steps_per_epoch)
        metrics |= {f"val_{name}": value for name, value in steps.validate(validation).items()}
        for name in ("loss", "val_loss"):
            if not math.isfinite(metrics[name]):
                raise TrainingError(f"{name} is {metrics[name]} in epoch {epoch + 1}; lower --learning-rate")
        if state.history.add(metrics):
            state.best = model.get_weights()
        state.history.seconds = time.monotonic() - started
        state.finished = epoch + 1 == values.epochs or state.history.should_stop(values.patience)
        if spread.chief:
            if run.checkpoint:
                run.checkpoint.save(model, state.history, state.best, state.finished)
            run.report(epoch, metrics)  # what was reported is on the disk
        if logs is not None:
            logs.write(epoch, metrics)
        if state.finished:
            break


class _Steps:
    """Training and validation steps of a compiled model on all replicas, with the metrics of all together."""

    def __init__(self, model: keras.Model, distribution: Distribution) -> None:
        strategy = distribution.strategy or tf.distribute.get_strategy()
        self._model = model
        self._train = tf.function(
            lambda batch: strategy.run(_without_result(model.train_step), (batch,)), reduce_retracing=True
        )
        self._test = tf.function(
            lambda batch: strategy.run(_without_result(model.test_step), (batch,)), reduce_retracing=True
        )

    def train(self, feed: Any, steps: int) -> dict[str, float]:
        """Runs this many steps; returns the means over them."""
        self._model.reset_metrics()
        for _ in range(steps):
            self._train(next(feed))
        return self._metrics()

    def validate(self, batches: Any) -> dict[str, float]:
        """Runs all the batches; returns the means over them."""
        self._model.reset_metrics()
        for batch in batches:
            self._test(batch)
        return self._metrics()

    def _metrics(self) -> dict[str, float]:
        return {name: float(value) for name, value in self._model.get_metrics_result().items()}


def _without_result(step: Callable[[Any], Any]) -> Callable[[Any], None]:
    """A step for what it does to the model: its metrics are read once an epoch."""

    def run(batch: Any) -> None:
        step(batch)

    return run


class _TensorBoard:
    """Each epoch's metrics as TensorBoard's event files; needs no TensorBoard to be written."""

    _SCALAR = tf.compat.v1.SummaryMetadata(
        plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
    )

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with self._saying_where():
            self._writer = tf.summary.create_file_writer(str(folder))

    def write(self, epoch: int, metrics: dict[str, float]) -> None:
        """One epoch's metrics, on the disk when this returns; raises `TrainingError` if there is no room."""
        with self._saying_where(), self._writer.as_default():
            for name, value in metrics.items():
                tf.summary.write(name, tf.constant(value), step=epoch, metadata=self._SCALAR)
            self._writer.flush()

    @contextmanager
    def _saying_where(self) -> Iterator[None]:
        try:
            yield
        except tf.errors.OpError as error:  # a full disk is RESOURCE_EXHAUSTED, like a lack of memory
            reason = error.message.splitlines()[0].rpartition("}} ")[2]
            raise TrainingError(f"--tensorboard {self._folder} cannot be written to: {reason}") from error


def _shared_out(problem: Problem, batch_size: int, replicas: int) -> Problem:
    """The problem, divisible among the replicas; raises `BadInput` if it cannot be."""
    if batch_size % replicas:
        raise BadInput(f"a batch of {batch_size} cannot be shared by {replicas} replicas")
    counts = len(problem.train), len(problem.validation)
    if min(counts) < replicas:
        raise BadInput(
            f"{problem.data}: {counts[0]} examples to train on and {counts[1]} to validate on, where"
            f" {replicas} of each are needed; only a class of two or more gives any to validate on"
        )
    return dataclasses.replace(
        problem,
        train=_divisible(problem.train, replicas),
        validation=_divisible(problem.validation, replicas),
    )


def _divisible(examples: Examples, replicas: int) -> Examples:
    """All but the last few examples, so that every replica has its share of every batch."""
    surplus = len(examples) % replicas
    return examples.take(np.arange(len(examples) - surplus)) if surplus else examples


def _as_called(interface: Interface) -> Callable[[Any, Any], tuple[Any, Any]]:
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

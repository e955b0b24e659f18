"""What a recipe is: data made into a problem, models for it, and how to tell whether it was learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from training.config import Hyperparameters
from training.pipeline import Arrays, Examples

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Interface:
    """How a model is called once it is published.

    Inputs are named tensors with an unknown first dimension. The Keras model takes the one tensor, or a
    dictionary of them if there are several; it answers one tensor, named `outputs[0]`, or a dictionary.
    `own` says that it is a user's own and not an image classifier, whatever its tensors are called.
    """

    inputs: Mapping[str, tf.TensorSpec]
    outputs: tuple[str, ...]
    own: bool = False

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Height, width and channels of an image classifier's `images`; None for every other model."""
        spec = self.inputs.get("images")
        if spec is None or self.own:
            return None
        height, width, channels = spec.shape[1:]
        return height, width, channels

    def call(self, model: keras.Model, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The model's inference: named tensors in, named float32 tensors out."""
        argument = dict(inputs) if len(self.inputs) > 1 else next(iter(inputs.values()))
        answer = model(argument, training=False)
        named = answer if isinstance(answer, dict) else {self.outputs[0]: answer}
        return {name: tf.cast(named[name], tf.float32) for name in self.outputs}

    def built(self, model: keras.Model) -> keras.Model:
        """The model with its weights made, by a call on one example of zeros."""
        self.call(
            model, {name: tf.zeros((1, *spec.shape[1:]), spec.dtype) for name, spec in self.inputs.items()}
        )
        return model


@dataclass(frozen=True)
class Problem:
    """What is to be learned, from which examples; `labels` is empty when the outputs are not classes."""

    data: str
    interface: Interface
    train: Examples
    validation: Examples
    test: Examples
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


Judge = Callable[[Problem, Arrays], Metrics]
Correct = Callable[[Problem, Arrays], NDArray[np.bool_]]


@dataclass(frozen=True)
class Variant:
    """One way to solve the problem; a recipe that compares several publishes its first."""

    build: Callable[[], keras.Model]
    loss: Any
    loss_weights: dict[str, float] | None = None
    metrics: Any = None


@dataclass(frozen=True)
class Plan:
    """A recipe made concrete for one data set and the user's options.

    `judge` gives the held-out metrics from the model's outputs for `problem.test`; `headline` names the one
    of them that matters most, higher or lower as `higher_is_better` says. `correct` says for each held-out
    example whether the outputs are right, for a paired comparison; None if nothing is right or wrong.
    `look_inside` adds to the metrics what only the Keras model can tell, such as its weights.
    """

    recipe: str
    task: str
    problem: Problem
    hyperparameters: Hyperparameters
    variants: dict[str, Variant]
    model_name: str
    headline: str
    judge: Judge
    correct: Correct | None = None
    look_inside: Callable[[keras.Model], Metrics] = lambda _: {}
    higher_is_better: bool = True

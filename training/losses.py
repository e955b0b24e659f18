"""Custom losses, registered in the package "sluice": a pure function, and a thin class over it."""

# mypy: allow-subclassing-any, allow-untyped-decorators
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from training.layers import registered


@registered
def huber(y_true: Any, y_pred: Any, threshold: float = 1.0) -> Any:
    """Huber's loss of each example: squares of small errors, absolute values of large ones.

    Huber, "Robust Estimation of a Location Parameter" (1964): with the error e, e^2 / 2 where
    |e| <= threshold, else threshold * (|e| - threshold / 2). The mean over the last axis: [N, K] to [N].
    """
    error = keras.ops.abs(keras.ops.cast(y_true, y_pred.dtype) - y_pred)
    small, large = keras.ops.square(error) / 2, threshold * (error - threshold / 2)
    return keras.ops.mean(keras.ops.where(error <= threshold, small, large), axis=-1)


def huber_with(threshold: float) -> Callable[[Any, Any], Any]:
    """`huber` wrapped so that its threshold is a hyperparameter, for an API that takes (y_true, y_pred)."""

    def wrapped(y_true: Any, y_pred: Any) -> Any:
        return huber(y_true, y_pred, threshold)

    return wrapped


@registered
class HuberLoss(keras.losses.Loss):
    """`huber` as a class: the threshold is saved with the model."""

    def __init__(self, threshold: float = 1.0, name: str = "huber_loss", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.threshold = threshold

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The loss of each example."""
        return huber(y_true, y_pred, self.threshold)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "threshold": self.threshold}


@registered
def contrastive(y_true: Any, distance: Any, margin: float = 1.0) -> Any:
    """The contrastive loss of each pair: equal ones are pulled together, others pushed past the margin.

    y d^2 + (1 - y) max(margin - d, 0)^2, where y is 1 for a pair of one class. [N, 1] to [N]. It is twice
    equation 4 of Hadsell, Chopra & LeCun, "Dimensionality Reduction by Learning an Invariant Mapping" (2006),
    where y is 1 for a pair of two classes.
    """
    same = keras.ops.cast(y_true, distance.dtype)
    apart = keras.ops.square(keras.ops.maximum(margin - distance, 0.0))
    return keras.ops.mean(same * keras.ops.square(distance) + (1.0 - same) * apart, axis=-1)


@registered
class ContrastiveLoss(keras.losses.Loss):
    """`contrastive` as a class: the margin is saved with the model."""

    def __init__(self, margin: float = 1.0, name: str = "contrastive_loss", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.margin = margin

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The loss of each pair; `y_pred` is the distance."""
        return contrastive(y_true, y_pred, self.margin)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "margin": self.margin}

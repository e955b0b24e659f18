"""Custom metrics, registered in the package "sluice"."""

# mypy: allow-subclassing-any, allow-untyped-decorators
from __future__ import annotations

from typing import Any

import keras

from training.layers import registered


@registered
class PairAccuracy(keras.metrics.Mean):
    """The share of pairs judged rightly by whether their distance is under a threshold."""

    def __init__(self, threshold: float = 0.5, name: str = "pair_accuracy", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.threshold = threshold

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Counts a batch: `y_true` is 1 for a pair of one class, `y_pred` the distance; both [N] or [N, 1].

        `sample_weight` says how much each pair counts, likewise.
        """
        distance = keras.ops.reshape(y_pred, (-1,))
        same = keras.ops.cast(distance < self.threshold, self.dtype)
        truth = keras.ops.cast(keras.ops.reshape(y_true, (-1,)), self.dtype)
        super().update_state(keras.ops.equal(same, truth), sample_weight)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "threshold": self.threshold}

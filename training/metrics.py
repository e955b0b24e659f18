"""Custom metrics, registered in the package "sluice"."""

# mypy: allow-subclassing-any, allow-untyped-decorators
from __future__ import annotations

from typing import Any

import keras

from training.layers import registered


@registered
class PairAccuracy(keras.metrics.Metric):
    """The share of pairs that are told apart, or together, by whether their distance is under a threshold."""

    def __init__(self, threshold: float = 0.5, name: str = "pair_accuracy", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.threshold = threshold
        self.right = self.add_weight(name="right", initializer="zeros")
        self.seen = self.add_weight(name="seen", initializer="zeros")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Counts a batch: `y_true` is 1 for a pair of one class, `y_pred` the distance; both [N, 1]."""
        same = keras.ops.cast(y_pred < self.threshold, self.dtype)
        hits = keras.ops.cast(keras.ops.equal(same, keras.ops.cast(y_true, self.dtype)), self.dtype)
        weights = (
            keras.ops.ones_like(hits) if sample_weight is None else keras.ops.cast(sample_weight, self.dtype)
        )
        self.right.assign_add(keras.ops.sum(hits * weights))
        self.seen.assign_add(keras.ops.sum(weights * keras.ops.ones_like(hits)))

    def result(self) -> Any:
        """The share so far; 0 before the first batch."""
        return keras.ops.divide_no_nan(self.right, self.seen)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "threshold": self.threshold}

"""Wide & Deep, twice: as a functional model, and as a subclass with the same weights in the same order.

Cheng et al., "Wide & Deep Learning for Recommender Systems" (2016): a linear path that memorises beside a
deep one that generalises. The auxiliary output is the deep path's alone.
"""

# mypy: allow-subclassing-any, allow-untyped-decorators
from __future__ import annotations

from typing import Any

import keras

from training.layers import registered

_SCALE = 21.0  # scikit-learn's features have a standard deviation of 1 / sqrt(442)


def wide_deep(wide: int, deep: int, units: int = 30) -> keras.Model:
    """`wide` [N, wide] and `deep` [N, deep], float32, to `main` [N, 1] and `auxiliary` [N, 1]."""
    inputs = {"wide": keras.Input((wide,), name="wide"), "deep": keras.Input((deep,), name="deep")}
    scaled = {name: keras.layers.Rescaling(_SCALE)(tensor) for name, tensor in inputs.items()}
    hidden = keras.layers.Dense(units, activation="relu", name="hidden1")(scaled["deep"])
    hidden = keras.layers.Dense(units, activation="relu", name="hidden2")(hidden)
    joined = keras.layers.Concatenate()([scaled["wide"], hidden])
    main = keras.layers.Dense(1, dtype="float32", name="main")(joined)
    auxiliary = keras.layers.Dense(1, dtype="float32", name="auxiliary")(hidden)
    return keras.Model(inputs, {"main": main, "auxiliary": auxiliary}, name="wide_deep")


@registered
class WideDeep(keras.Model):
    """`wide_deep` as a `Model` subclass; the inputs are a dictionary, and so are the outputs."""

    def __init__(self, units: int = 30, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        dtype = self.dtype_policy
        self.scale = keras.layers.Rescaling(_SCALE, dtype=dtype)
        self.hidden1 = keras.layers.Dense(units, activation="relu", dtype=dtype)
        self.hidden2 = keras.layers.Dense(units, activation="relu", dtype=dtype)
        self.auxiliary = keras.layers.Dense(1, dtype="float32")  # first, as functional models sort outputs
        self.main = keras.layers.Dense(1, dtype="float32")

    def call(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The linear path and the deep one into `main`, the deep one alone into `auxiliary`."""
        wide, deep = self.scale(inputs["wide"]), self.scale(inputs["deep"])
        hidden = self.hidden2(self.hidden1(deep))
        joined = keras.ops.concatenate([wide, hidden], axis=-1)
        return {"main": self.main(joined), "auxiliary": self.auxiliary(hidden)}

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "units": self.units}

"""Models of one number: `x` float32 [N, 1] to `y` float32 [N, 1]."""

from __future__ import annotations

import keras

from training.layers import SimpleDense


def simple_dense() -> keras.Model:
    """One `SimpleDense` of one unit: y = w x + b."""
    return keras.Sequential([keras.Input((1,), name="x"), SimpleDense(1, dtype="float32", name="line")])


def dense() -> keras.Model:
    """Keras's own dense layer of one unit."""
    return keras.Sequential([keras.Input((1,), name="x"), keras.layers.Dense(1, dtype="float32")])

"""A `Model` subclass of residual blocks that are layers themselves, one of them used several times."""

# mypy: allow-subclassing-any, allow-untyped-decorators
from __future__ import annotations

from typing import Any

import keras

from training.layers import CNNResidual, DNNResidual, chain, registered


@registered
class ResidualNet(keras.Model):
    """A convolutional residual block, then a dense one that is used `repeats` times with the same weights.

    Input [N, H, W, C] of pixels 0..255, output probabilities float32 [N, classes].
    """

    def __init__(self, classes: int, repeats: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.classes = classes
        self.repeats = repeats
        dtype = self.dtype_policy
        self.stem = [
            keras.layers.Rescaling(1 / 255, dtype=dtype),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu", dtype=dtype),
        ]
        self.images = CNNResidual(2, 32, dtype=dtype)
        self.flat = [
            keras.layers.MaxPooling2D(2, dtype=dtype),
            keras.layers.Flatten(dtype=dtype),
            keras.layers.Dense(64, activation="relu", dtype=dtype),
        ]
        self.vectors = DNNResidual(2, 64, dtype=dtype)
        self.head = keras.layers.Dense(classes, activation="softmax", dtype="float32")

    def call(self, images: Any) -> Any:
        """Probabilities of the classes for each image."""
        x = self.images(chain(self.stem, images))  # [N, H, W, 32]
        x = chain(self.flat, x)  # [N, H/2, W/2, 32] -> [N, 64]
        for _ in range(self.repeats):
            x = self.vectors(x)  # [N, 64]
        return self.head(x)  # [N, classes]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "classes": self.classes, "repeats": self.repeats}

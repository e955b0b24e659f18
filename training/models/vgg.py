"""VGG: blocks made by loops over a table.

Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition" (2015), table 1;
with batch normalization, and with global pooling in place of the two wide dense layers.
"""

# mypy: allow-subclassing-any, allow-untyped-decorators
from __future__ import annotations

from typing import Any

import keras

from training.layers import ConvolutionBlock, chain, registered

# (repetitions, filters) of each block; every block halves the sides
BLOCKS: dict[str, tuple[tuple[int, int], ...]] = {
    "vgg4": ((2, 32), (2, 64)),
    "vgg7": ((2, 32), (2, 64), (3, 128)),
    "vgg16": ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)),
}


@registered
class VGG(keras.Model):
    """Input [N, H, W, C] of pixels 0..255, output probabilities float32 [N, classes].

    Args:
        classes: how many there are.
        depth: a key of `BLOCKS`.
    """

    def __init__(self, classes: int, depth: str = "vgg7", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if depth not in BLOCKS:
            raise ValueError(f"VGG has no depth {depth!r}; there are: {', '.join(BLOCKS)}")
        self.classes = classes
        self.depth = depth
        dtype = self.dtype_policy
        self.scale = keras.layers.Rescaling(1 / 127.5, offset=-1.0, dtype=dtype)
        self.blocks = [
            ConvolutionBlock(repetitions, filters, dtype=dtype) for repetitions, filters in BLOCKS[depth]
        ]
        self.pool = keras.layers.GlobalAveragePooling2D(dtype=dtype)
        self.head = keras.layers.Dense(classes, activation="softmax", dtype="float32")

    def call(self, images: Any, training: bool = False) -> Any:  # noqa: ARG002 - Keras reads it and hands it down
        """Probabilities of the classes for each image."""
        x = chain(
            self.blocks, self.scale(images)
        )  # [N, H, W, C] -> [N, H/2, W/2, 32] -> [N, H/4, W/4, 64] ...
        return self.head(self.pool(x))  # [N, filters of the last block] -> [N, classes]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "classes": self.classes, "depth": self.depth}

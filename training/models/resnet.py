"""ResNet: block -> stage -> model, and a table of depths.

He et al., "Deep Residual Learning for Image Recognition" (2015): section 4.1 for ImageNet, 4.2 for CIFAR-10.
The blocks are `IdentityBlock` and `BottleneckBlock` in `training.layers`.
"""

# mypy: allow-subclassing-any, allow-untyped-decorators
from __future__ import annotations

from typing import Any, NamedTuple

import keras

from training.layers import BottleneckBlock, IdentityBlock, chain, convolution, normalization, registered


class Depth(NamedTuple):
    """The stages: `blocks[i]` blocks of `filters[i]`; every stage but the first halves the sides."""

    block: type[IdentityBlock]
    filters: tuple[int, ...]
    blocks: tuple[int, ...]
    large_images: bool


DEPTHS: dict[str, Depth] = {
    # images of 8 to 64 pixels a side
    "resnet8": Depth(IdentityBlock, (16, 32, 64), (1, 1, 1), large_images=False),
    "resnet14": Depth(IdentityBlock, (16, 32, 64), (2, 2, 2), large_images=False),
    "resnet20": Depth(IdentityBlock, (16, 32, 64), (3, 3, 3), large_images=False),
    "resnet32": Depth(IdentityBlock, (16, 32, 64), (5, 5, 5), large_images=False),
    "resnet56": Depth(IdentityBlock, (16, 32, 64), (9, 9, 9), large_images=False),
    # images of ImageNet's size
    "resnet18": Depth(IdentityBlock, (64, 128, 256, 512), (2, 2, 2, 2), large_images=True),
    "resnet34": Depth(IdentityBlock, (64, 128, 256, 512), (3, 4, 6, 3), large_images=True),
    "resnet50": Depth(BottleneckBlock, (64, 128, 256, 512), (3, 4, 6, 3), large_images=True),
}


def stem(filters: int, large_images: bool, dtype: Any) -> list[keras.layers.Layer]:
    """The layers before the first stage; for large images they divide the sides by four."""
    if not large_images:
        return [
            convolution(filters, 3, dtype=dtype),
            normalization(dtype=dtype),
            keras.layers.ReLU(dtype=dtype),
        ]
    return [
        convolution(filters, 7, strides=2, dtype=dtype),
        normalization(dtype=dtype),
        keras.layers.ReLU(dtype=dtype),
        keras.layers.MaxPooling2D(3, strides=2, padding="same", dtype=dtype),
    ]


def stage(depth: Depth, index: int, dtype: Any) -> list[keras.layers.Layer]:
    """The blocks of one stage; the first block halves the sides (but not in the first stage)."""
    strides = [1 if index == 0 else 2] + [1] * (depth.blocks[index] - 1)
    return [depth.block(depth.filters[index], stride, dtype=dtype) for stride in strides]


@registered
class ResNet(keras.Model):
    """A residual network from pixels to probabilities.

    Input [N, H, W, C] of pixels 0..255 (uint8, or any real type), output float32 [N, classes].

    Args:
        classes: how many there are.
        depth: a key of `DEPTHS`.
    """

    def __init__(self, classes: int, depth: str = "resnet20", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if depth not in DEPTHS:
            raise ValueError(f"ResNet has no depth {depth!r}; there are: {', '.join(DEPTHS)}")
        self.classes = classes
        self.depth = depth
        table, dtype = DEPTHS[depth], self.dtype_policy
        self.scale = keras.layers.Rescaling(1 / 127.5, offset=-1.0, dtype=dtype)
        self.stem = stem(table.filters[0], table.large_images, dtype)
        self.stages = [stage(table, index, dtype) for index in range(len(table.blocks))]
        self.pool = keras.layers.GlobalAveragePooling2D(dtype=dtype)
        # float32 also under mixed precision: probabilities in half precision lose their tails
        self.head = keras.layers.Dense(classes, activation="softmax", dtype="float32")

    def call(self, images: Any, training: bool = False) -> Any:  # noqa: ARG002 - Keras reads it and hands it down
        """Probabilities of the classes for each image."""
        x = self.scale(images)  # [N, H, W, C] in -1..1
        x = chain(self.stem, x)  # [N, H, W, 16], large: [N, H/4, W/4, 64]
        for blocks in self.stages:
            # resnet20: [N, H, W, 16] -> [N, H/2, W/2, 32] -> [N, H/4, W/4, 64]
            # resnet50: [N, H/4, W/4, 256] -> [N, H/8, W/8, 512] -> ... -> [N, H/32, W/32, 2048]
            x = chain(blocks, x)
        x = self.pool(x)  # [N, 64], large: [N, 512], resnet50: [N, 2048]
        return self.head(x)  # [N, classes]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "classes": self.classes, "depth": self.depth}

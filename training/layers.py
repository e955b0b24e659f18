"""Custom layers, registered in the package "sluice": `keras.models.load_model` needs no `custom_objects`.

A constructor stores and validates, `build` makes the weights, `call` is pure. Inner layers take the outer
one's dtype policy, so that a model loads with the precision that it was saved with. `training` is not handed
down by name: Keras gives it to every layer that is called inside another.
"""

# mypy: allow-subclassing-any, allow-untyped-decorators
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

Shape = tuple[int | None, ...]

registered = keras.saving.register_keras_serializable(package="sluice")


@registered
class IdentityBlock(keras.layers.Layer):
    """A residual block: two 3x3 convolutions, added to the input.

    From He et al., "Deep Residual Learning for Image Recognition" (2015), figure 2 and option B: where the
    shape changes (`strides` > 1, or other `filters` than the input's channels) a 1x1 projection takes the
    identity's place.

    Input [N, H, W, C], output [N, ceil(H / strides), ceil(W / strides), filters].
    """

    expansion = 1

    def __init__(self, filters: int, strides: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.strides = strides
        self.branch = self._branch()
        self.shortcut: list[keras.layers.Layer] = []

    def _branch(self) -> list[keras.layers.Layer]:
        dtype = self.dtype_policy
        return [
            convolution(self.filters, 3, self.strides, dtype=dtype),
            normalization(dtype=dtype),
            keras.layers.ReLU(dtype=dtype),
            convolution(self.filters, 3, dtype=dtype),
            normalization(dtype=dtype),
        ]

    def build(self, input_shape: Shape) -> None:
        """Makes the weights, with a projection if this input needs one."""
        width = self.filters * self.expansion
        if self.strides != 1 or input_shape[-1] != width:
            dtype = self.dtype_policy
            self.shortcut = [
                convolution(width, 1, self.strides, dtype=dtype),
                normalization(dtype=dtype),
            ]
        build_chain(self.branch, input_shape)
        build_chain(self.shortcut, input_shape)

    def call(self, inputs: Any) -> Any:
        """relu(branch(inputs) + shortcut(inputs))."""
        return keras.ops.relu(chain(self.branch, inputs) + chain(self.shortcut, inputs))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """[N, ceil(H / strides), ceil(W / strides), filters * expansion]."""
        batch, *sides, _ = input_shape
        reduced = [side if side is None else -(-side // self.strides) for side in sides]
        return (batch, *reduced, self.filters * self.expansion)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "filters": self.filters, "strides": self.strides}


@registered
class BottleneckBlock(IdentityBlock):
    """The residual block of the deep ImageNet models: 1x1 to `filters`, 3x3, then 1x1 to four times as many.

    The stride is on the 3x3 convolution, where it loses less than on the first 1x1 ("ResNet v1.5").
    """

    expansion = 4

    def _branch(self) -> list[keras.layers.Layer]:
        dtype = self.dtype_policy
        return [
            convolution(self.filters, 1, dtype=dtype),
            normalization(dtype=dtype),
            keras.layers.ReLU(dtype=dtype),
            convolution(self.filters, 3, self.strides, dtype=dtype),
            normalization(dtype=dtype),
            keras.layers.ReLU(dtype=dtype),
            convolution(self.filters * self.expansion, 1, dtype=dtype),
            normalization(dtype=dtype),
        ]


def convolution(filters: int, size: int, strides: int = 1, *, dtype: Any) -> keras.layers.Conv2D:
    """A convolution before batch normalization: no bias, which that would subtract; He's initializer."""
    return keras.layers.Conv2D(
        filters, size, strides, padding="same", use_bias=False, kernel_initializer="he_normal", dtype=dtype
    )


def normalization(*, dtype: Any) -> keras.layers.BatchNormalization:
    """Batch normalization whose averages settle within the few hundred steps of a small data set."""
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, dtype=dtype)


def chain(layers: Sequence[keras.layers.Layer], inputs: Any) -> Any:
    """The inputs through the layers, one after another."""
    for layer in layers:
        inputs = layer(inputs)
    return inputs


def build_chain(layers: Sequence[keras.layers.Layer], input_shape: Shape) -> None:
    """Makes the weights of layers that are called one after another."""
    for layer in layers:
        layer.build(input_shape)
        input_shape = layer.compute_output_shape(input_shape)

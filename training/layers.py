"""Custom layers, registered in the package "sluice": `keras.models.load_model` needs no `custom_objects`.

A constructor stores and validates, `build` makes the weights, `call` is pure. Inner layers take the outer
one's dtype policy, so that a model loads with the precision that it was saved with. `training` is not passed
on by name: Keras gives it to every layer that is called inside another.
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
    """A convolution before batch normalization: without bias, which would be subtracted; He's initializer."""
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


@registered
class SimpleDense(keras.layers.Layer):
    """A dense layer from first principles: activation(inputs @ w + b). [N, D] to [N, units]."""

    def __init__(self, units: int = 32, activation: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.activation = keras.activations.get(activation)

    def build(self, input_shape: Shape) -> None:
        """Makes `w` [D, units], normally distributed, and `b` [units], zero."""
        self.w = self.add_weight(
            shape=(input_shape[-1], self.units), initializer="random_normal", trainable=True, name="w"
        )
        self.b = self.add_weight(shape=(self.units,), initializer="zeros", trainable=True, name="b")

    def call(self, inputs: Any) -> Any:
        """activation(inputs @ w + b)."""
        return self.activation(keras.ops.matmul(inputs, self.w) + self.b)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """[..., units]."""
        return (*input_shape[:-1], self.units)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        activation = keras.activations.serialize(self.activation)
        return {**super().get_config(), "units": self.units, "activation": activation}


@registered
class EuclideanDistance(keras.layers.Layer):
    """The distance between two vectors: [left, right], each [N, D], to [N, 1].

    Never below the square root of 1e-7, since at 0 its derivative would be infinite.
    """

    def call(self, inputs: Any) -> Any:
        """sqrt(sum((left - right)^2))."""
        left, right = inputs
        squares = keras.ops.sum(keras.ops.square(left - right), axis=-1, keepdims=True)
        return keras.ops.sqrt(keras.ops.maximum(squares, keras.backend.epsilon()))

    def compute_output_shape(self, input_shape: list[Shape]) -> Shape:
        """[N, 1]."""
        return (*input_shape[0][:-1], 1)


@registered
class Below(keras.layers.Layer):
    """1.0 where the input is under a threshold, else 0.0; the shape stays."""

    def __init__(self, threshold: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold = threshold

    def call(self, inputs: Any) -> Any:
        """Compares each number with the threshold."""
        return keras.ops.cast(inputs < self.threshold, self.compute_dtype)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """The input's."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "threshold": self.threshold}


class _Residual(keras.layers.Layer):
    """Adds what its hidden layers make of the inputs to the inputs, so both have one shape."""

    hidden: Sequence[keras.layers.Layer]

    def build(self, input_shape: Shape) -> None:
        """Makes the hidden layers' weights."""
        build_chain(self.hidden, input_shape)

    def call(self, inputs: Any) -> Any:
        """The sum of the inputs and what the hidden layers make of them."""
        return inputs + chain(self.hidden, inputs)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """The input's."""
        return input_shape


@registered
class CNNResidual(_Residual):
    """Convolutions made in a loop, added to the input: [N, H, W, filters] in and out."""

    def __init__(self, depth: int, filters: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.depth = depth
        self.filters = filters
        self.hidden = [
            keras.layers.Conv2D(filters, 3, padding="same", activation="relu", dtype=self.dtype_policy)
            for _ in range(depth)
        ]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "depth": self.depth, "filters": self.filters}


@registered
class DNNResidual(_Residual):
    """Dense layers made in a loop, added to the input: [N, units] in and out."""

    def __init__(self, depth: int, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.depth = depth
        self.units = units
        self.hidden = [
            keras.layers.Dense(units, activation="relu", dtype=self.dtype_policy) for _ in range(depth)
        ]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "depth": self.depth, "units": self.units}


@registered
class ConvolutionBlock(keras.layers.Layer):
    """VGG's block: 3x3 convolutions made in a loop, then max pooling.

    [N, H, W, C] to [N, H // 2, W // 2, filters].
    """

    def __init__(self, repetitions: int, filters: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.repetitions = repetitions
        self.filters = filters
        self.hidden: list[keras.layers.Layer] = []
        for _ in range(repetitions):
            self.hidden += [
                convolution(filters, 3, dtype=self.dtype_policy),
                normalization(dtype=self.dtype_policy),
                keras.layers.ReLU(dtype=self.dtype_policy),
            ]
        self.hidden.append(keras.layers.MaxPooling2D(2, dtype=self.dtype_policy))

    def build(self, input_shape: Shape) -> None:
        """Makes the convolutions' weights."""
        build_chain(self.hidden, input_shape)

    def call(self, inputs: Any) -> Any:
        """The convolutions one after another, then the pooling."""
        return chain(self.hidden, inputs)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """[N, H // 2, W // 2, filters]."""
        batch, height, width, _ = input_shape
        halves = [side if side is None else side // 2 for side in (height, width)]
        return (batch, *halves, self.filters)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "repetitions": self.repetitions, "filters": self.filters}


@registered
def absolute(inputs: Any) -> Any:
    """|inputs|, for a Lambda layer: registered, so that the saved model names it instead of carrying code."""
    return keras.ops.abs(inputs)


@registered
def thresholded_relu(inputs: Any, threshold: float = 0.5) -> Any:
    """max(inputs, threshold): a ReLU with an adjustable floor, for a Lambda layer."""
    return keras.ops.maximum(inputs, threshold)

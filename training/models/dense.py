"""Classifiers with one hidden layer, written in each of the ways that Keras offers.

All take images [N, H, W, C] of pixels 0..255 and answer probabilities float32 [N, classes].
"""

from __future__ import annotations

from typing import Any

import keras

from training.layers import SimpleDense, absolute, thresholded_relu

Shape = tuple[int, int, int]

HIDDEN_UNITS = 128


def _scaled_and_flat(images: Any) -> Any:
    return keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(images))


def _images(shape: Shape) -> Any:
    return keras.Input(shape, dtype="uint8", name="images")


def _probabilities(classes: int, name: str = "scores") -> keras.layers.Dense:
    return keras.layers.Dense(classes, activation="softmax", dtype="float32", name=name)


def sequential(shape: Shape, classes: int) -> keras.Model:
    """Flatten, Dense(128, relu), Dense(classes, softmax), as a list of layers."""
    return keras.Sequential(
        [
            _images(shape),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dense(HIDDEN_UNITS, activation="relu"),
            _probabilities(classes),
        ]
    )


def functional(shape: Shape, classes: int) -> keras.Model:
    """The same as a graph of calls."""
    images = _images(shape)
    hidden = keras.layers.Dense(HIDDEN_UNITS, activation="relu")(_scaled_and_flat(images))
    return keras.Model(images, _probabilities(classes)(hidden), name="functional")


def branches(shape: Shape, classes: int) -> keras.Model:
    """One trunk, two branches: `scores` [N, classes], and `parity` [N, 1], how likely the class is odd."""
    images = _images(shape)
    trunk = keras.layers.Dense(HIDDEN_UNITS, activation="relu")(_scaled_and_flat(images))
    parity = keras.layers.Dense(32, activation="relu")(trunk)
    outputs = {
        "scores": _probabilities(classes)(trunk),
        "parity": keras.layers.Dense(1, activation="sigmoid", dtype="float32", name="parity")(parity),
    }
    return keras.Model(images, outputs, name="branches")


def with_activation(shape: Shape, classes: int, activation: keras.layers.Layer) -> keras.Model:
    """A hidden layer without an activation, followed by the given layer as its activation."""
    images = _images(shape)
    hidden = activation(keras.layers.Dense(HIDDEN_UNITS)(_scaled_and_flat(images)))
    return keras.Model(images, _probabilities(classes)(hidden))


def lambda_abs(shape: Shape, classes: int) -> keras.Model:
    """A Lambda layer of `absolute` after the hidden layer."""
    return with_activation(shape, classes, keras.layers.Lambda(absolute, name="absolute"))


def lambda_relu(shape: Shape, classes: int) -> keras.Model:
    """A Lambda layer of `thresholded_relu`, with an argument, after the hidden layer."""
    layer = keras.layers.Lambda(thresholded_relu, arguments={"threshold": 0.1}, name="thresholded_relu")
    return with_activation(shape, classes, layer)


def plain_relu(shape: Shape, classes: int) -> keras.Model:
    """Keras's own ReLU after the hidden layer, to compare the two Lambda layers with."""
    return with_activation(shape, classes, keras.layers.ReLU())


def simple_dense(shape: Shape, classes: int) -> keras.Model:
    """The custom layer `SimpleDense` as the hidden layer."""
    images = _images(shape)
    hidden = SimpleDense(HIDDEN_UNITS, activation="relu")(_scaled_and_flat(images))
    return keras.Model(images, _probabilities(classes)(hidden), name="simple_dense")

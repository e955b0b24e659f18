"""Layers of somebody's own that fail, each in a way of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

registered = keras.saving.register_keras_serializable("tests")


class Shaped(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Says what shape it gives, so that Keras needs no call to find out as a model is made or loaded."""

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def call(self, inputs: Any) -> Any:
        return inputs * 1.0


@registered
class Asks(Shaped):
    """Looks up what is not there."""

    def call(self, inputs: Any) -> Any:
        settings: dict[str, float] = {}
        return inputs * settings["gain"]


@registered
class Peeks(Shaped):
    """Looks at numbers, which a graph does not have yet."""

    def call(self, inputs: Any) -> Any:
        return inputs * float(inputs.numpy().max() < 1e9)


@registered
class Reads(Shaped):
    """Reads a file that is not there."""

    def call(self, inputs: Any) -> Any:
        return inputs * len(Path("/no/such/table.csv").read_text())


@registered
class Runs(Shaped):
    """Asks an iterator that has nothing for its next."""

    def call(self, inputs: Any) -> Any:
        nothing: list[float] = []
        return inputs * next(iter(nothing))


class NotCalibrated(Exception):
    """Takes two arguments, so that Keras cannot make another one of its kind."""

    def __init__(self, device: str, days: int) -> None:
        super().__init__(device, days)


@registered
class Refuses(Shaped):
    """Raises an error of its own."""

    def call(self, inputs: Any) -> Any:
        raise NotCalibrated("camera", 3)


@registered
class Multiplies(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Does well, until a test puts something else in its place."""

    def call(self, inputs: Any) -> Any:
        return inputs * 2.0

"""Two images through one tower: how far apart are they?"""

from __future__ import annotations

import keras

from training.layers import Below, EuclideanDistance

MARGIN = 1.0
THRESHOLD = MARGIN / 2


def tower(shape: tuple[int, int, int]) -> keras.Model:
    """The network that both images go through: [N, H, W, C] of pixels to an embedding [N, 64]."""
    return keras.Sequential(
        [
            keras.Input(shape, dtype="uint8"),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dropout(0.1),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dropout(0.1),
            keras.layers.Dense(64),
        ],
        name="tower",
    )


def siamese(shape: tuple[int, int, int]) -> keras.Model:
    """`left` and `right` [N, H, W, C] of pixels to `distance` [N, 1] and `same` [N, 1], 1.0 for one class."""
    inputs = {name: keras.Input(shape, dtype="uint8", name=name) for name in ("left", "right")}
    shared = tower(shape)
    embeddings = [shared(inputs["left"]), shared(inputs["right"])]
    distance = EuclideanDistance(dtype="float32", name="distance")(embeddings)
    same = Below(THRESHOLD, dtype="float32", name="same")(distance)
    return keras.Model(inputs, {"distance": distance, "same": same}, name="siamese")

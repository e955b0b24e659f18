"""A model of one's own, for the tests of what publishes it."""

from pathlib import Path

import keras
import numpy as np

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3)).astype(np.uint8)


def classifier(classes: int = 3) -> keras.Model:
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((6, 6, 3), name="photo"),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(classes, activation="softmax"),
        ]
    )


def scaled(*layers: keras.Layer) -> keras.Model:
    """Pixels of 0 to 1 for these layers, flat. A seed is theirs to bring: they draw one as they are made."""
    first = [keras.Input((6, 6, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten()]
    return keras.Sequential([*first, *layers])


def labels_file(folder: Path, text: str) -> Path:
    (folder / "labels.txt").write_text(text, encoding="utf-8")
    return folder / "labels.txt"

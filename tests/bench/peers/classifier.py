"""What peers and the hand-written server run: Pillow, and the SavedModel as TensorFlow's guide calls it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

TOP = 5


def decode(body: bytes, side: int) -> np.ndarray:
    """An encoded photograph -> uint8 [side, side, 3]."""
    image = Image.open(io.BytesIO(body)).convert("RGB")
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


class Classifier:
    """A SavedModel in this process.

    Args:
        folder: the SavedModel.
    """

    def __init__(self, folder: str) -> None:
        self._loaded = tf.saved_model.load(folder)  # the signature does not keep it alive
        self._signature = self._loaded.signatures["serving_default"]

    def scores(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, side, side, 3] -> float32 [N, K]."""
        found: np.ndarray = self._signature(images=tf.constant(images))["scores"].numpy()
        return found

    def classify(self, images: np.ndarray) -> list[list[dict[str, Any]]]:
        """The best classes of each image, best first."""
        return [
            [{"index": int(index), "score": float(row[index])} for index in np.argsort(-row)[:TOP]]
            for row in self.scores(images)
        ]

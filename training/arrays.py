"""Labelled images as arrays, and the split that holds some of them out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

HELD_OUT = 0.2
SPLIT_SEED = 0  # the held-out examples must be the same in every run, or nothing can be compared


@dataclass(frozen=True)
class ImageData:
    """Labelled images: uint8 [N, H, W, C] and int64 [N] for training, and the same held out for the end."""

    name: str
    labels: tuple[str, ...]
    train_images: NDArray[np.uint8]
    train_classes: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_classes: NDArray[np.int64]
    notes: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        height, width, channels = self.train_images.shape[1:]
        return height, width, channels

    def limited(self, examples: int | None) -> ImageData:
        """About this many training examples: the same share of every class, at least one; None takes all."""
        if examples is None or examples >= len(self.train_classes):
            return self
        left_out = 1 - examples / len(self.train_classes)
        kept, _ = split_by_class(self.train_classes, left_out, SPLIT_SEED)
        return replace(self, train_images=self.train_images[kept], train_classes=self.train_classes[kept])


def split_by_class(
    classes: NDArray[np.int64], held_out: float, seed: int | None
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices (kept, held out), the same share of every class, at least one on each side.

    A class with a single example is kept. Without a seed to draw by, the first of each class are held out.
    """
    random = None if seed is None else np.random.default_rng(seed)
    kept, held = [], []
    for value in np.unique(classes):
        members = np.flatnonzero(classes == value)
        if random is not None:
            members = random.permutation(members)
        count = min(max(1, round(len(members) * held_out)), len(members) - 1)
        held.append(members[:count])
        kept.append(members[count:])
    return np.sort(np.concatenate(kept)), np.sort(np.concatenate(held))

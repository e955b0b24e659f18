"""tf.data pipelines: split, shuffle, augment, batch.

Everything random is a pure function of the seed, the epoch and the step, so that a run that was killed and
resumed at epoch 7 sees what it would have seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Examples:
    """Named inputs and named targets; all arrays have the same first dimension."""

    inputs: Arrays
    targets: Arrays

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def take(self, indices: NDArray[np.intp]) -> Examples:
        """The examples at these indices."""
        return Examples(
            {name: array[indices] for name, array in self.inputs.items()},
            {name: array[indices] for name, array in self.targets.items()},
        )


def shift(images: Any, seed: Any, pixels: int) -> Any:
    """Each image moved by up to `pixels` in each direction, at random; the border is filled with its edge.

    Takes and gives [N, H, W, C] of any type.
    """
    _, height, width, _ = images.shape
    count = tf.shape(images)[0]
    moves = tf.random.stateless_uniform([count, 2], seed, -pixels, pixels + 1, tf.int32)
    rows = tf.clip_by_value(tf.range(height)[tf.newaxis] + moves[:, :1], 0, height - 1)
    columns = tf.clip_by_value(tf.range(width)[tf.newaxis] + moves[:, 1:], 0, width - 1)
    return tf.gather(tf.gather(images, rows, batch_dims=1), columns, axis=2, batch_dims=1)


def flip(images: Any, seed: Any) -> Any:
    """Each image mirrored left to right, or not. Takes and gives [N, H, W, C] of any type."""
    mirrored = tf.random.stateless_uniform([tf.shape(images)[0], 1, 1, 1], seed) < 0.5
    return tf.where(mirrored, images[:, :, ::-1], images)


def _shift_by_an_eighth(images: Any, seed: Any) -> Any:
    return shift(images, seed, max(1, images.shape[1] // 8))


def _shift_and_flip(images: Any, seed: Any) -> Any:
    return flip(_shift_by_an_eighth(images, seed), seed + 1)


# of (images, seed), by the names in `config.AUGMENTATIONS`
_CHANGES: dict[str, Callable[[Any, Any], Any]] = {
    "none": lambda images, _: images,
    "shift": _shift_by_an_eighth,
    "shift-flip": _shift_and_flip,
}


def training_batches(
    examples: Examples, batch_size: int, seed: int, first_epoch: int = 0, augment: str = "none"
) -> tf.data.Dataset:
    """Endless batches (inputs, targets), epoch after epoch; the last batch of an epoch may be smaller.

    Only inputs of rank 4 (images) are augmented, each by the same draw, so that pairs stay pairs.
    """
    change = _CHANGES[augment]
    count = len(examples)
    inputs = {name: tf.constant(array) for name, array in examples.inputs.items()}
    targets = {name: tf.constant(array) for name, array in examples.targets.items()}

    def one_epoch(epoch: Any) -> tf.data.Dataset:
        order = tf.random.experimental.stateless_shuffle(tf.range(count), [seed, epoch])
        batches = tf.data.Dataset.from_tensor_slices(order).batch(batch_size)

        def look_up(step: Any, indices: Any) -> tuple[Any, Any]:
            draw = tf.stack([tf.cast(seed, tf.int64), epoch * 1_000_003 + step])
            chosen = {name: tf.gather(array, indices) for name, array in inputs.items()}
            changed = {
                name: change(array, draw) if array.shape.rank == 4 else array
                for name, array in chosen.items()
            }
            return changed, {name: tf.gather(array, indices) for name, array in targets.items()}

        return batches.enumerate().map(look_up, num_parallel_calls=tf.data.AUTOTUNE)

    epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int32).max)
    return epochs.flat_map(one_epoch).prefetch(tf.data.AUTOTUNE)


def evaluation_batches(examples: Examples, batch_size: int = 256) -> tf.data.Dataset:
    """The examples in their order, as batches (inputs, targets)."""
    whole = tf.data.Dataset.from_tensor_slices((examples.inputs, examples.targets))
    return whole.batch(batch_size).cache().prefetch(tf.data.AUTOTUNE)

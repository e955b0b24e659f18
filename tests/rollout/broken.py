"""Writes versions that are broken on purpose: `python -m tests.rollout.broken GOOD FOLDER FIRST`.

GOOD is a published version; FOLDER/FIRST and those that follow become the same model with each of the harms
in turn wrapped around its scores, its `describe` and `self_test` as they were: what only traffic can find.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

Scores = Callable[[Any], Any]


def permuted(scores: Scores, images: Any) -> Any:
    """Every class is called by its neighbour's name."""
    return tf.roll(scores(images), 1, axis=1)


def noised(scores: Scores, images: Any) -> Any:
    """As after a bad copy of the weights: what it sees is buried in fixed noise."""
    noise = tf.random.stateless_uniform(tf.shape(images)[1:], (1, 2), maxval=256, dtype=tf.int32)
    return scores(tf.cast((tf.cast(images, tf.int32) + 3 * noise) % 256, tf.uint8))


def slow(scores: Scores, images: Any) -> Any:
    """Runs a hundred times, each time on what depends on the time before: slow on a busy machine, too."""

    def again(run: Any, answer: Any) -> Any:
        return run + 1, scores(images + tf.cast(tf.reduce_max(answer) > 2.0, tf.uint8))

    _, answer = tf.while_loop(lambda run, _: run < 100, again, (1, scores(images)), parallel_iterations=1)
    return answer


def raises(scores: Scores, images: Any) -> Any:
    """Fails on about every tenth image."""
    sums = tf.reduce_sum(tf.cast(images, tf.int32), axis=[1, 2, 3])
    good = tf.debugging.Assert(tf.reduce_all(sums % 10 != 3), ["an image that this version cannot bear"])
    with tf.control_dependencies([good]):
        return tf.identity(scores(images))


HARMS = {each.__name__: each for each in (permuted, noised, slow, raises)}


def write(good: Path, harm: str, target: Path) -> None:
    loaded = tf.saved_model.load(str(good))
    serve = loaded.signatures["serving_default"]
    wrap = HARMS[harm]
    spec = serve.structured_input_signature[1]["images"]
    images = tf.TensorSpec(spec.shape, spec.dtype, name="images")

    def scores(batch: Any) -> Any:
        return serve(images=batch)["scores"]

    module = tf.Module()
    module.loaded = loaded
    broken = tf.function(lambda images: {"scores": wrap(scores, images)}, input_signature=[images])
    others = {name: each for name, each in loaded.signatures.items() if name != "serving_default"}
    temporary = target.with_name(f".{target.name}.tmp")
    tf.saved_model.save(module, str(temporary), signatures=others | {"serving_default": broken})
    shutil.move(temporary, target)


if __name__ == "__main__":
    for number, name in enumerate(HARMS, start=int(sys.argv[3])):
        write(Path(sys.argv[1]), name, Path(sys.argv[2]) / str(number))

"""The signatures of a published model, as functions in the graph.

| signature         | in                             | out                                                |
|-------------------|--------------------------------|----------------------------------------------------|
| `serving_default` | the model's named inputs [N,…] | its named outputs, float32 [N,…]                   |
| `serving_bytes`   | `image_bytes` string [N]       | the same (image classifiers only)                  |
| `describe`        | `index` int32 [N]              | `label` string [N], `card` string [N]              |
| `self_test`       | `index` int32 [N]              | `expected`, `actual` float32 [N, K]                |

Every output's first dimension is its input's, so that all of them work under server-side batching.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from training.recipes.base import Interface

Call = Callable[[Mapping[str, Any]], dict[str, Any]]

_GREY_AND_ALPHA, _RGB, _RGB_AND_ALPHA = 2, 3, 4
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_INDEX = tf.TensorSpec((None,), tf.int32, name="index")


def decode_image(encoded: Any, height: int, width: int, channels: int) -> Any:
    """One encoded JPEG, PNG, GIF (its first frame) or BMP as uint8 [height, width, channels].

    Alpha is composited over white; colours become grey by the weights of ITU-R BT.601, grey becomes RGB; the
    resize is antialiased bilinear, rounded, which is what Pillow calls BILINEAR. What TensorFlow's decoder
    does not read is ignored: EXIF orientation, a GIF's or PNG's transparent colour, a BMP's palette.
    """
    pixels = tf.cond(
        tf.io.is_jpeg(encoded),
        # the accurate transform is Pillow's too; TensorFlow's default is the fast one
        lambda: tf.io.decode_jpeg(encoded, channels=0, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(encoded, channels=0, expand_animations=False),
    )
    is_bmp = tf.equal(tf.strings.substr(encoded, 0, 2), "BM")  # whose fourth byte is not alpha, and often 0
    pixels = tf.cond(is_bmp, lambda: pixels[..., :_RGB], lambda: pixels)
    pixels = _to_channels(_over_white(tf.cast(pixels, tf.float32)), channels)
    resized = tf.image.resize(pixels, (height, width), method="bilinear", antialias=True)
    resized = tf.clip_by_value(tf.round(resized), 0.0, 255.0)
    return tf.ensure_shape(tf.cast(resized, tf.uint8), (height, width, channels))


def _over_white(pixels: Any) -> Any:
    count = tf.shape(pixels)[-1]

    def composited() -> Any:
        alpha = pixels[..., -1:] / 255.0
        return tf.round(pixels[..., :-1] * alpha + 255.0 * (1.0 - alpha))

    has_alpha = tf.logical_or(tf.equal(count, _GREY_AND_ALPHA), tf.equal(count, _RGB_AND_ALPHA))
    return tf.cond(has_alpha, composited, lambda: pixels)


def _to_channels(pixels: Any, channels: int) -> Any:
    has_colour = tf.equal(tf.shape(pixels)[-1], _RGB)

    def grey() -> Any:
        return tf.round(tf.reduce_sum(pixels * tf.constant(_LUMA), axis=-1, keepdims=True))

    def coloured() -> Any:
        return tf.repeat(pixels[..., :1], _RGB, axis=-1)

    if channels == 1:
        return tf.ensure_shape(tf.cond(has_colour, grey, lambda: pixels[..., :1]), (None, None, 1))
    return tf.ensure_shape(tf.cond(has_colour, lambda: pixels, coloured), (None, None, _RGB))


def serving_default(call: Call, interface: Interface) -> tf.types.experimental.ConcreteFunction:
    """The model by its named inputs."""
    names = list(interface.inputs)

    def serve(**inputs: Any) -> dict[str, Any]:
        return call({name: inputs[name] for name in names})

    return tf.function(serve).get_concrete_function(**interface.inputs)


def serving_bytes(call: Call, interface: Interface) -> tf.types.experimental.ConcreteFunction:
    """The model by encoded image files; decodes and resizes in the graph.

    As `decode_image` does: EXIF orientation, which training and the gateway honour, is ignored, so a
    photograph taken with the camera on its side stays on its side.
    """
    shape = interface.image_shape
    assert shape is not None

    def serve(image_bytes: Any) -> dict[str, Any]:
        images = tf.map_fn(
            lambda encoded: decode_image(encoded, *shape),
            image_bytes,
            fn_output_signature=tf.TensorSpec(shape, tf.uint8),
        )
        return call({"images": images})

    spec = tf.TensorSpec((None,), tf.string, name="image_bytes")
    return tf.function(serve).get_concrete_function(image_bytes=spec)


def describe(labels: tuple[str, ...], card: str) -> tf.types.experimental.ConcreteFunction:
    """Label and card of each index; an index past the last label gives the last one's.

    The card is the same for every index. A model without labels answers "" for each.
    """
    names = tf.constant(labels or ("",))

    def describe(index: Any) -> dict[str, Any]:
        return {
            "label": tf.gather(names, tf.clip_by_value(index, 0, max(0, len(labels) - 1))),
            "card": tf.fill(tf.shape(index), card),
        }

    return tf.function(describe).get_concrete_function(index=_INDEX)


def self_test(
    call: Call, golden: Mapping[str, NDArray[Any]], expected: NDArray[np.float32]
) -> tf.types.experimental.ConcreteFunction:
    """The model run, there and now, on golden inputs in the graph; any index is clipped to those there are.

    `expected` is float32 [N, K]: all the outputs of the Keras model as `side_by_side` lays them.
    """
    last, width = len(expected) - 1, expected.shape[1]

    def run(index: Any) -> dict[str, Any]:
        chosen = tf.clip_by_value(index, 0, last)
        inputs = {name: tf.gather(tf.constant(array), chosen) for name, array in golden.items()}
        return {
            "expected": tf.gather(tf.constant(expected), chosen),
            "actual": tf.ensure_shape(side_by_side(call(inputs)), (None, width)),
        }

    return tf.function(run).get_concrete_function(index=_INDEX)


def side_by_side(outputs: Mapping[str, Any]) -> Any:
    """Named outputs [N, ...] as one float32 [N, K], in the order of their names."""
    flat = [tf.reshape(outputs[name], (tf.shape(outputs[name])[0], -1)) for name in sorted(outputs)]
    return tf.concat(flat, axis=1)

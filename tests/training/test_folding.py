"""What is folded into a convolution's kernel and bias, and what must not be."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from training import folding
from training.freezing import freeze, graph_nodes
from training.models.resnet import ResNet

RANDOM = np.random.default_rng(3)
IMAGES = RANDOM.uniform(-1, 1, [2, 8, 8, 3]).astype(np.float32)
KERNEL = RANDOM.normal(size=[3, 3, 3, 5]).astype(np.float32)
SCALES, OFFSETS = RANDOM.uniform(0.5, 2, 5).astype(np.float32), RANDOM.normal(size=5).astype(np.float32)


def traced(call: Callable[[Any], Any], channels: int = 3) -> tf.types.experimental.ConcreteFunction:
    spec = tf.TensorSpec([None, 8, 8, channels], tf.float32)
    return tf.function(call, autograph=False).get_concrete_function(spec)


def frozen(function: tf.types.experimental.ConcreteFunction) -> tf.types.experimental.ConcreteFunction:
    found = freeze(function)
    assert found is not None
    return found


def ops(function: tf.types.experimental.ConcreteFunction) -> Counter[str]:
    return Counter(node.op for node in graph_nodes(function))


def optimized_ops(function: tf.types.experimental.ConcreteFunction) -> Counter[str]:
    """What a session runs, after its optimizer."""
    graph = tf.Graph()
    with graph.as_default(), tf.compat.v1.Session() as session:
        tf.import_graph_def(function.graph.as_graph_def(), name="")
        ran = tf.compat.v1.RunMetadata()
        options = tf.compat.v1.RunOptions(output_partition_graphs=True)
        feeds = {function.inputs[0].name: IMAGES}
        session.run(function.outputs[0].name, feeds, options=options, run_metadata=ran)
    return Counter(node.op for partition in ran.partition_graphs for node in partition.node)


def answers(function: tf.types.experimental.ConcreteFunction) -> list[np.ndarray]:
    return [np.asarray(answer, np.float32) for answer in tf.nest.flatten(function(tf.constant(IMAGES)))]


def check_same(
    actual: tf.types.experimental.ConcreteFunction,
    expected: tf.types.experimental.ConcreteFunction,
    tolerance: float = 1e-5,
) -> None:
    for one, other in zip(answers(actual), answers(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance * max(1.0, np.abs(other).max()))


def trained(model: keras.Model) -> keras.Model:
    """The model as after training: at first normalization adds nothing, and such an addition is left out."""
    random = np.random.default_rng(5)
    for variable in model.variables:
        if variable.path.endswith(("moving_mean", "beta", "bias")):
            variable.assign(random.normal(0, 0.2, variable.shape))
        elif variable.path.endswith(("moving_variance", "gamma")):
            variable.assign(random.uniform(0.5, 1.5, variable.shape))
    return model


def residual(policy: str) -> keras.Model:
    """Features of a block with a shortcut, of convolutions with biases and without, one of them depthwise."""
    keras.utils.set_random_seed(0)
    images = keras.Input([8, 8, 3])
    first = layers.Conv2D(6, 3, padding="same", dtype=policy)(images)
    first = layers.ReLU(dtype=policy)(layers.BatchNormalization(dtype=policy)(first))
    second = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, use_bias=False, dtype=policy)(
        first
    )
    second = layers.ReLU(dtype=policy)(layers.BatchNormalization(dtype=policy)(second))
    third = layers.Conv2D(6, 1, use_bias=False, dtype=policy)(second)
    third = layers.BatchNormalization(dtype=policy)(third)
    return trained(keras.Model(images, layers.ReLU(dtype=policy)(layers.Add(dtype=policy)([first, third]))))


@pytest.mark.parametrize(
    ("policy", "tolerance"), [("float32", 1e-5), ("mixed_bfloat16", 0.02), ("mixed_float16", 0.002)]
)
def test_a_block_is_its_convolutions_with_a_bias_each(policy: str, tolerance: float) -> None:
    model = residual(policy)  # it holds the variables
    function = traced(model)

    found = frozen(function)

    assert ops(found)["BiasAdd"] == 3
    assert ops(found)["AddV2"] == 1, "the shortcut"
    assert ops(found)["Mul"] == 0
    assert ops(found)["Cast"] == (0 if policy == "float32" else 1), "only that of the images"
    check_same(found, function, tolerance)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_the_kernels_that_were_folded_are_gone(policy: str) -> None:
    """Or each version would hold its weights twice, on the disk and in each replica's memory."""
    model = residual(policy)

    found = frozen(traced(model))

    assert constants(found) < 1.3 * kernels(model)


def test_so_are_those_of_an_exported_model(tmp_path: Path) -> None:
    """Its variables are read in functions within functions, and there wait for the images."""
    model = residual("float32")
    model.export(tmp_path, verbose=False)
    loaded = tf.saved_model.load(tmp_path)  # it holds the variables
    function = traced(loaded.serve)

    found = frozen(function)

    assert constants(found) < 1.3 * kernels(model)
    check_same(found, function)


def constants(function: tf.types.experimental.ConcreteFunction) -> int:
    """How many numbers its constants have."""
    found = [node.attr["value"].tensor for node in graph_nodes(function) if node.op == "Const"]
    return sum(tf.make_ndarray(tensor).size for tensor in found)


def kernels(model: keras.Model) -> int:
    """How many numbers its kernels have."""
    return sum(math.prod(variable.shape) for variable in model.variables if "kernel" in variable.path)


def test_what_float16_computes_is_not_scaled_out_of_its_range() -> None:
    """As by a channel that hardly varies and has large weights."""
    model = residual("mixed_float16")
    first, normalization = model.layers[1:3]
    first.kernel.assign(first.kernel * 0.0 + 4096.0)
    normalization.gamma.assign(normalization.gamma * 0.0 + 32.0)
    function = traced(model)

    found = frozen(function)

    assert ops(function)["BiasAdd"] == 1, "the layer's own"
    assert ops(found)["BiasAdd"] == 3, "that of the first layer as it was, and those of the others"
    assert 0 < ops(found)["Mul"] < ops(function)["Mul"], "those of the first layer's normalization"
    dark = tf.constant(IMAGES / 1000)  # otherwise the results would be out of range, too
    (one,), (other,) = (tf.nest.flatten(each(dark)) for each in (found, function))
    assert np.isfinite(other).all()
    np.testing.assert_allclose(one, other, atol=0.02 * np.abs(other).max())


def test_nothing_but_its_convolutions_is_left_of_a_residual_network_that_runs() -> None:
    model = ResNet(10, "resnet20")
    model(IMAGES)

    left = optimized_ops(frozen(traced(trained(model))))

    assert left["AddN"] == 0
    assert left["AddV2"] <= 9, "one for each shortcut, unless the kernels take these in, too"
    assert left["Mul"] <= 1, "the pixels' scale"


def convolved(images: Any) -> Any:
    return tf.nn.conv2d(images, KERNEL, 1, "SAME")


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda images: convolved(images) * SCALES + OFFSETS, id="scale and offset"),
        pytest.param(lambda images: OFFSETS + SCALES * convolved(images), id="the other way round"),
        pytest.param(lambda images: (convolved(images) + OFFSETS) * SCALES, id="offset and scale"),
        pytest.param(lambda images: convolved(images) + OFFSETS.reshape(1, 1, 1, 5), id="four dimensions"),
        pytest.param(lambda images: convolved(images) * 2.0 + 1.0, id="one number for all"),
        pytest.param(
            lambda images: tf.nn.bias_add(convolved(images), OFFSETS) * SCALES + 1.0, id="two biases"
        ),
        pytest.param(lambda images: convolved(images) + tf.sqrt(SCALES) * OFFSETS, id="computed constants"),
        pytest.param(
            lambda images: tf.nn.relu(convolved(images) + OFFSETS) * SCALES + OFFSETS, id="up to a relu"
        ),
    ],
)
def test_what_is_done_to_each_channel_alone_is_folded(call: Callable[[Any], Any]) -> None:
    function = traced(call)

    found = frozen(function)

    assert ops(found)["BiasAdd"] == 1
    check_same(found, function)


def shared(images: Any) -> Any:
    features = convolved(images)
    return features * SCALES + OFFSETS, tf.nn.relu(features)


def answered(images: Any) -> Any:
    features = convolved(images)
    return features, features * SCALES + OFFSETS


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda images: convolved(images) * SCALES, id="nothing to add"),
        pytest.param(lambda images: convolved(images) + tf.ones([8, 8, 5]), id="one for each pixel, too"),
        pytest.param(lambda images: convolved(images) + tf.ones([1, 1, 1, 1, 5]), id="more dimensions"),
        pytest.param(lambda images: tf.nn.conv2d(images, KERNEL[..., :1], 1, "SAME") + OFFSETS, id="wider"),
        pytest.param(lambda images: convolved(images) + tf.reduce_mean(images), id="no constant"),
        pytest.param(lambda images: images + tf.ones([3]), id="not convolved"),
        pytest.param(lambda images: tf.nn.relu(convolved(images)) + OFFSETS, id="after the activation"),
        pytest.param(lambda images: convolved(images) * images[..., :1] + OFFSETS, id="gated"),
        pytest.param(
            lambda images: tf.nn.conv2d(images, images[0, :3, :3, :, None], 1, "SAME") + 1.0, id="made"
        ),
        pytest.param(shared, id="needed before"),
        pytest.param(answered, id="answered before"),
    ],
)
def test_what_is_not_stays(call: Callable[[Any], Any]) -> None:
    function = traced(call)

    found = frozen(function)

    assert ops(found)["BiasAdd"] == ops(function)["BiasAdd"]
    check_same(found, function)


KERNELS = np.ones([3, 3, 8, 8], np.float32)  # as many channels as there are rows and columns


@pytest.mark.parametrize(
    "call",
    [
        lambda images: tf.nn.conv2d(images, KERNELS, 1, "SAME", data_format="NCHW") + tf.ones([8]),
        lambda images: tf.nn.bias_add(tf.nn.conv2d(images, KERNELS, 1, "SAME"), tf.ones([8]), "NCHW") * 2.0,
    ],
)
def test_channels_that_come_first_are_left(call: Callable[[Any], Any]) -> None:
    function = traced(call, channels=8)

    left = ops(frozen(function))

    assert [left[op] for op in ("AddV2", "BiasAdd", "Mul")] == [
        ops(function)[op] for op in ("AddV2", "BiasAdd", "Mul")
    ]


def test_random_numbers_are_made_anew_at_each_call() -> None:
    found = frozen(traced(lambda images: convolved(images) + tf.random.normal([5])))

    assert ops(found)["BiasAdd"] == 0
    assert not np.array_equal(answers(found)[0], answers(found)[0])


def test_a_graph_that_would_become_too_large_a_message_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    function = traced(lambda images: convolved(images) * SCALES + OFFSETS)
    monkeypatch.setattr(folding, "_MOST_BYTES", len(function.graph.as_graph_def().SerializeToString()))

    assert ops(frozen(function))["BiasAdd"] == 0


def test_constants_that_wait_for_the_images_are_known_before() -> None:
    """As those of a function that is called wait for its arguments."""

    def call(images: Any) -> Any:
        with tf.control_dependencies([images]):
            return convolved(images) * tf.constant(SCALES) + tf.constant(OFFSETS)

    function = traced(call)

    assert ops(frozen(function))["BiasAdd"] == 1
    check_same(frozen(function), function)


def test_inputs_and_outputs_keep_their_order() -> None:
    def two(images: Any, offsets: Any) -> list[Any]:
        biased = convolved(images) + OFFSETS
        return [offsets, biased, tf.reduce_mean(biased, [1, 2]) + offsets]

    specs = tf.TensorSpec([None, 8, 8, 3]), tf.TensorSpec([None, 5])
    function = tf.function(two, autograph=False).get_concrete_function(*specs)
    inputs = tf.constant(IMAGES), tf.constant(RANDOM.normal(size=[2, 5]).astype(np.float32))

    for answer, expected in zip(frozen(function)(*inputs), function(*inputs), strict=True):
        np.testing.assert_allclose(answer, expected, atol=1e-5)

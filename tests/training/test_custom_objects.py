"""Every registered layer, model, loss and metric, by one checker."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tests.training.checker import check_layer
from training import config, layers, losses, metrics
from training.models import residual, resnet, vgg, wide_deep

IMAGES = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1)).astype(np.uint8)
VECTORS = np.random.default_rng(0).random((4, 5), np.float32)
CONVOLUTION, NORM = (
    9,
    4,
)  # weights: of a 3x3 kernel for each pair of channels; of normalization for each channel

ROW = np.array([[1.0, 2.0]], np.float32)
ONES = np.ones((1, 3, 3, 1), np.float32)
# a 3x3 convolution of ones over ones counts the neighbours: four at a corner, six at a side, nine inside
COUNTED = np.array([[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]])[None, :, :, None]

LAYERS: dict[str, tuple[Any, Any, Any, int, Any]] = {
    "SimpleDense": (
        lambda: layers.SimpleDense(2, activation="relu"),
        VECTORS,
        (4, 2),
        5 * 2 + 2,
        (ROW, [[4.0, 4.0]]),
    ),
    "EuclideanDistance": (
        layers.EuclideanDistance,
        [VECTORS, VECTORS[::-1].copy()],
        (4, 1),
        0,
        ([ROW, np.array([[4.0, 6.0]], np.float32)], [[5.0]]),
    ),
    "Below": (lambda: layers.Below(0.5), VECTORS, (4, 5), 0, (np.array([[0.4, 0.5]]), [[1.0, 0.0]])),
    "CNNResidual": (
        lambda: layers.CNNResidual(2, 3),
        IMAGES,
        (2, 8, 8, 3),
        2 * (CONVOLUTION * 3 * 3 + 3),
        None,
    ),
    "CNNResidual of one": (
        lambda: layers.CNNResidual(1, 1),
        IMAGES[..., :1],
        (2, 8, 8, 1),
        CONVOLUTION + 1,
        (ONES, ONES + COUNTED + 1),
    ),
    "DNNResidual": (
        lambda: layers.DNNResidual(2, 5),
        VECTORS,
        (4, 5),
        2 * (5 * 5 + 5),
        (np.ones((1, 5), np.float32), np.full((1, 5), 1.0 + 31.0)),  # 5 + 1 = 6, then 30 + 1 = 31
    ),
    "ConvolutionBlock": (
        lambda: layers.ConvolutionBlock(2, 4),
        IMAGES,
        (2, 4, 4, 4),
        CONVOLUTION * 3 * 4 + CONVOLUTION * 4 * 4 + 2 * NORM * 4,
        None,
    ),
    "IdentityBlock": (
        lambda: layers.IdentityBlock(3),
        IMAGES,
        (2, 8, 8, 3),
        2 * (CONVOLUTION * 3 * 3 + NORM * 3),
        None,
    ),
    "IdentityBlock with a projection": (
        lambda: layers.IdentityBlock(6, strides=2),
        IMAGES,
        (2, 4, 4, 6),
        CONVOLUTION * 3 * 6 + CONVOLUTION * 6 * 6 + 3 * 6 + 3 * NORM * 6,
        None,
    ),
    "BottleneckBlock": (
        lambda: layers.BottleneckBlock(2, strides=2),
        IMAGES,
        (2, 4, 4, 8),
        3 * 2 + CONVOLUTION * 2 * 2 + 2 * 8 + 3 * 8 + NORM * (2 + 2 + 8 + 8),
        None,
    ),
    "ResidualNet": (
        lambda: residual.ResidualNet(3, repeats=2),
        PIXELS,
        (2, 3),
        (9 * 32 + 32) + 2 * (9 * 32 * 32 + 32) + (4 * 4 * 32 * 64 + 64) + 2 * (64 * 64 + 64) + (64 * 3 + 3),
        None,
    ),
    "ResNet": (lambda: resnet.ResNet(3, "resnet8"), PIXELS, (2, 3), 77_971, None),
    "VGG": (
        lambda: vgg.VGG(3, "vgg4"),
        PIXELS,
        (2, 3),
        9 * (32 + 32 * 32 + 32 * 64 + 64 * 64) + NORM * 2 * (32 + 64) + 64 * 3 + 3,
        None,
    ),
    "WideDeep": (
        lambda: wide_deep.WideDeep(4),
        {"wide": VECTORS[:, :2], "deep": VECTORS},
        {"main": (4, 1), "auxiliary": (4, 1)},
        (5 * 4 + 4) + (4 * 4 + 4) + (4 + 2 + 1) + (4 + 1),
        None,
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_and_models(name: str, tmp_path: Path) -> None:
    check_layer(*LAYERS[name], folder=tmp_path)


def test_everything_registered_is_checked() -> None:
    checked = {type(case[0]()).__name__ for case in LAYERS.values()}
    checked |= {"HuberLoss", "ContrastiveLoss", "PairAccuracy"}  # below
    functions = {"huber", "contrastive", "absolute", "thresholded_relu"}
    registered = {
        name.removeprefix("sluice>")
        for name in keras.saving.get_custom_objects()
        if name.startswith("sluice>")
    }
    assert registered == checked | functions


TRUTH = np.array([[0.0], [1.0], [3.0], [-4.0]], np.float32)
ZEROS = np.zeros((4, 1), np.float32)


def test_huber_by_hand_and_three_ways() -> None:
    by_hand = [0.0, 0.5, 2.5, 3.5]  # e^2 / 2 up to the threshold of 1, |e| - 1/2 past it
    as_function = np.array(losses.huber(TRUTH + 1, ZEROS + 1))
    as_wrapped = np.array(losses.huber_with(1.0)(TRUTH, ZEROS))
    as_class = float(losses.HuberLoss()(TRUTH, ZEROS))
    assert as_function.tolist() == by_hand
    assert as_wrapped.tolist() == by_hand
    assert as_class == pytest.approx(np.mean(by_hand), abs=1e-6)
    assert float(keras.losses.Huber(1.0)(TRUTH, ZEROS)) == pytest.approx(as_class, abs=1e-6)
    assert np.array(losses.huber_with(3.0)(TRUTH, ZEROS)).tolist() == [0.0, 0.5, 4.5, 7.5]


def test_contrastive_by_hand() -> None:
    same = np.array([[1.0], [1.0], [0.0], [0.0]], np.float32)
    distance = np.array([[0.0], [2.0], [0.25], [5.0]], np.float32)
    assert np.array(losses.contrastive(same, distance)).tolist() == [0.0, 4.0, 0.5625, 0.0]
    assert float(losses.ContrastiveLoss()(same, distance)) == pytest.approx((4.0 + 0.5625) / 4)
    assert float(losses.ContrastiveLoss(2.0)(same, distance)) == pytest.approx((4.0 + 1.75**2) / 4)


def test_a_depth_that_is_not_in_the_table_is_told_with_those_that_are() -> None:
    with pytest.raises(ValueError, match="ResNet has no depth 'resnet21'; there are: resnet8, resnet14"):
        resnet.ResNet(10, "resnet21")
    with pytest.raises(ValueError, match="VGG has no depth 'vgg5'; there are: vgg4, vgg7, vgg16"):
        vgg.VGG(10, "vgg5")
    # The command has these in its own table, since it does not import TensorFlow.
    assert {"resnet": (*resnet.DEPTHS,), "vgg": (*vgg.BLOCKS,)} == config.DEPTHS


@pytest.mark.parametrize("loss", [losses.HuberLoss(0.7), losses.ContrastiveLoss(1.5)])
def test_losses_train_and_come_back(loss: Any, tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1)])
    model.compile("sgd", loss, jit_compile=False)
    before = model.get_weights()[0]
    target = np.array([[0.0], [1.0], [0.0], [1.0]], np.float32)
    model.fit(VECTORS, target, epochs=1, verbose=0)
    assert np.abs(before - model.get_weights()[0]).max() > 0
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert loaded.loss.get_config() == loss.get_config()
    assert loaded.evaluate(VECTORS, target, verbose=0) == pytest.approx(
        model.evaluate(VECTORS, target, verbose=0)
    )


def test_pair_accuracy_by_hand() -> None:
    metric = metrics.PairAccuracy(0.5)
    assert float(metric.result()) == 0.0
    metric.update_state([[1.0], [0.0], [1.0], [0.0]], np.array([[0.1], [0.9], [0.7], [0.2]], np.float32))
    assert float(metric.result()) == 0.5
    metric.update_state([[1.0], [1.0]], np.array([[0.1], [0.2]], np.float32))
    assert float(metric.result()) == pytest.approx(4 / 6)
    again = metrics.PairAccuracy.from_config(metric.get_config())
    assert (again.threshold, float(again.result())) == (0.5, 0.0)


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_pairs_count_by_their_weights(shape: tuple[int, ...]) -> None:
    metric = metrics.PairAccuracy(0.5)
    right, wrong = 0.1, 0.9
    metric.update_state(
        np.ones(shape), np.array([[right], [wrong]], np.float32), np.reshape([3.0, 1.0], shape)
    )
    assert float(metric.result()) == pytest.approx(0.75)


def test_lambda_functions_by_hand() -> None:
    values = np.array([-2.0, 0.3, 2.0], np.float32)
    assert np.array(layers.absolute(values)).tolist() == pytest.approx([2.0, 0.3, 2.0])
    assert np.array(layers.thresholded_relu(values, 0.5)).tolist() == pytest.approx([0.5, 0.5, 2.0])


@pytest.mark.parametrize(
    ("depth", "weights"),
    [
        # CIFAR-10 with projections; He et al. give 0.27, 0.46 and 0.85 million without
        *(("resnet20", 272_474), ("resnet32", 466_906), ("resnet56", 855_770)),
        # ImageNet: the counts that every library's ResNet v1.5 has
        *(("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032)),
    ],
)
def test_the_depth_table_is_the_papers(depth: str, weights: int) -> None:
    large = resnet.DEPTHS[depth].large_images
    model = resnet.ResNet(1000 if large else 10, depth)
    model(np.zeros((1, 64, 64, 3), np.uint8))
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == weights


@pytest.mark.parametrize(
    ("depth", "side", "expected"),
    [
        # He et al., section 4.2: maps of 32, 16 and 8; table 1: of 56, 28, 14 and 7
        ("resnet8", 32, [(32, 16), (32, 16), (16, 32), (8, 64)]),
        ("resnet18", 224, [(56, 64), (56, 64), (28, 128), (14, 256), (7, 512)]),
        ("resnet50", 224, [(56, 64), (56, 256), (28, 512), (14, 1024), (7, 2048)]),
    ],
)
def test_the_stages_have_the_papers_maps(depth: str, side: int, expected: list[tuple[int, int]]) -> None:
    model = resnet.ResNet(10, depth)
    shape: layers.Shape = (1, side, side, 3)
    found = []
    for part in (model.stem, *model.stages):
        for layer in part:
            shape = layer.compute_output_shape(shape)
        found.append(shape)
    assert found == [(1, height, height, filters) for height, filters in expected]


@pytest.mark.parametrize("block", [layers.IdentityBlock, layers.BottleneckBlock])
def test_a_residual_block_ends_in_a_relu(block: type[layers.IdentityBlock]) -> None:
    keras.utils.set_random_seed(0)
    answer = np.array(block(2)(IMAGES - 0.5))
    assert answer.min() == 0.0
    assert answer.max() > 0.0


def test_a_bottleneck_halves_the_sides_in_its_middle() -> None:
    """Where ResNet v1 lost three of four pixels in its first 1x1 convolution."""
    block = layers.BottleneckBlock(2, strides=2)
    block.build((1, 8, 8, 3))
    sides = [layers.chain(block.branch[:count], IMAGES).shape[1] for count in (1, 4, 7)]
    assert sides == [8, 4, 4]

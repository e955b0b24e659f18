"""Data sets as arrays: what is bundled, what a file gives, and what cannot be used."""

import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.folders import of_two_classes, written, zipped
from training import sources
from training.arrays import ImageData, split_by_class
from training.errors import BadInput

MNIST: dict[str, Any] = {
    **{f"x_{part}": np.zeros((2, 4, 4), np.uint8) for part in ("train", "test")},
    **{f"y_{part}": np.array([0, 1]) for part in ("train", "test")},
}


def test_digits_are_pixels_and_always_split_alike() -> None:
    data, again = sources.load("digits"), sources.load("digits")
    assert data.train_images.shape == (1438, 8, 8, 1)
    assert data.test_images.shape == (359, 8, 8, 1)
    assert data.train_images.dtype == np.uint8
    values = set(np.unique(data.train_images).tolist())
    assert values == {int(np.rint(value * 255 / 16)) for value in range(17)}
    assert np.array_equal(data.test_images, again.test_images)
    # the split of every version so far: with another, none could be compared with them
    assert zlib.crc32(data.test_images.tobytes()) == 3220458447
    assert len(data.limited(200).train_classes) == pytest.approx(200, abs=10)


def test_the_split_takes_some_of_every_class() -> None:
    classes = np.array([0] * 50 + [1] * 5 + [2] * 2 + [3])
    kept, held = split_by_class(classes, 0.2, seed=1)
    assert sorted([*kept, *held]) == list(range(58))
    assert np.bincount(classes[held], minlength=4).tolist() == [10, 1, 1, 0]
    again, _ = split_by_class(classes, 0.2, seed=1)
    assert np.array_equal(kept, again)
    for part in (kept, held):
        assert np.array_equal(part, np.sort(part)), "they stay in their order"
    first_of_each, last = split_by_class(np.array([0] * 8 + [1] * 2), 0.2, seed=None)[::-1]
    assert (first_of_each.tolist(), last.tolist()) == ([0, 1, 8], [2, 3, 4, 5, 6, 7, 9])


def test_mnist_from_a_file(test_data: Path) -> None:
    data = sources.load(f"mnist={test_data / 'mnist.npz'}", examples=1000)
    assert data.image_shape == (28, 28, 1)
    assert data.test_images.shape == (10_000, 28, 28, 1)
    assert abs(len(data.train_classes) - 1000) < 20
    assert data.labels == tuple("0123456789")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_an_npz_in_keras_layout(name: str, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3)).astype(np.uint8)
    classes = np.arange(12)[:, None] % 10  # CIFAR-10 comes with a column of classes
    np.savez(tmp_path / "d.npz", x_train=images, y_train=classes, x_test=images, y_test=classes)
    data = sources.load(f"{name}={tmp_path / 'd.npz'}")
    assert np.array_equal(data.train_images, images)
    assert data.train_classes.tolist() == classes[:, 0].tolist()
    assert len(data.labels) == 10


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": np.zeros((2, 4, 4), np.uint8)}, "not an .npz file with x_train, y_train, x_test"),
        (MNIST | {"x_train": MNIST["x_train"][..., None].repeat(4, 3)}, r"uint8 \(2, 4, 4, 4\) and"),
        (MNIST | {"y_train": np.eye(2)}, r"y_train float64 \(2, 2\); they must be"),
        (MNIST | {"y_train": np.array([0.5, 1.5])}, "and whole numbers"),
        (MNIST | {"x_test": MNIST["x_test"][:0], "y_test": []}, r"x_test is uint8 \(0, 4, 4\) .*, N not 0"),
        (
            MNIST | {"x_test": np.zeros((2, 5, 4), np.uint8)},
            r"the images of x_train are \(4, 4, 1\) and those of x_test \(5, 4, 1\)",
        ),
        (
            {"x_train": np.zeros((2, 4, 4)), "y_train": [0, 1], "x_test": [[[0]]], "y_test": [0]},
            r"x_train is float64 \(2, 4, 4\) and y_train int64 \(2,\); they must be uint8",
        ),
        (
            {"x_train": np.zeros((2, 4, 4), np.uint8), "y_train": [0, 10], "x_test": [], "y_test": []},
            "y_train has classes outside 0..9",
        ),
    ],
)
def test_an_npz_of_something_else(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(BadInput, match=message):
        sources.load(f"mnist={tmp_path / 'd.npz'}")


def test_an_npz_that_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez_compressed(path, **MNIST)
    whole = path.read_bytes()
    for data in (b"", whole[:300], whole[:90] + b"\xff" * 20 + whole[110:]):
        path.write_bytes(data)
        with pytest.raises(BadInput, match=r"not an .npz file with x_train, y_train, x_test and y_test"):
            sources.load(f"mnist={path}")
    with path.open("wb") as file:
        np.save(file, MNIST["x_train"])
    with pytest.raises(BadInput, match=r"not an .npz file"):
        sources.load(f"mnist={path}")


def test_a_home_folder_is_found_behind_the_equals_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "photos.v2", of_two_classes())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sources.load("folder=~/photos.v2").name == "photos.v2"
    with pytest.raises(BadInput, match="~nobody-at-all/photos"):
        sources.load("folder=~nobody-at-all/photos")
    monkeypatch.chdir(tmp_path / "photos.v2")
    assert sources.load("folder=.").name == "photos.v2"


def test_a_share_of_every_class_is_trained_on() -> None:
    images = np.zeros((111, 2, 2, 1), np.uint8)
    classes = np.array([0] * 100 + [1] * 10 + [2])
    data = ImageData("d", ("a", "b", "c"), images, classes, images, classes)
    assert np.bincount(data.limited(22).train_classes).tolist() == [20, 2, 1]
    numbered = replace(data, train_images=np.arange(111, dtype=np.uint8).reshape(111, 1, 1, 1))
    some = numbered.limited(22).train_images[:20].ravel()
    assert 20 <= some.max() - some.min() < 100, "they are drawn, and not the first or the last"
    assert len(set(some.tolist())) == 20
    for all_of_them in (None, 111, 1000):
        assert data.limited(all_of_them) is data


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none.npz: no such file or folder, in --data mnist=.*none.npz"):
        sources.load(f"mnist={tmp_path / 'none.npz'}")
    with pytest.raises(BadInput, match="none: no such file or folder"):
        sources.load(f"folder={tmp_path / 'none'}")
    with pytest.raises(BadInput, match="folder needs a path"):
        sources.load("folder")
    with pytest.raises(BadInput, match="takes no path"):
        sources.load("digits=x")


def test_a_few_of_cifar10(test_data: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(test_data / "cifar10.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(("/0000.jpg", "/0001.jpg"))]
        assert len(names) == 40
        few = {name: archive.read(name) for name in names}
    data = sources.load(f"cifar10={zipped(tmp_path / 'few.zip', few)}")
    assert data.image_shape == (32, 32, 3)
    assert (len(data.train_classes), len(data.test_classes)) == (20, 20)
    assert data.labels[0] == "airplane"

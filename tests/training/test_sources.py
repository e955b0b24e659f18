"""Data sets as arrays: what is bundled, what a file or folder gives, and what cannot be used."""

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from training import sources
from training.arrays import split_by_class
from training.errors import BadInput

Folder = dict[str, bytes]


def image(colour: Any, size: tuple[int, int] = (6, 6), mode: str = "RGB", kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, kind)
    return file.getvalue()


RED, BLUE = image((255, 0, 0)), image((0, 0, 255))


def written(folder: Path, files: Folder) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def zipped(path: Path, files: Folder) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def of_two_classes(prefix: str = "", count: int = 5) -> Folder:
    return {
        f"{prefix}{label}/{number}.png": data
        for label, data in (("red", RED), ("blue", BLUE))
        for number in range(count)
    }


def test_digits_are_pixels_and_always_split_alike() -> None:
    data, again = sources.load("digits"), sources.load("digits")
    assert data.train_images.shape == (1438, 8, 8, 1)
    assert data.test_images.shape == (359, 8, 8, 1)
    assert data.train_images.dtype == np.uint8
    values = set(np.unique(data.train_images).tolist())
    assert values == {int(np.rint(value * 255 / 16)) for value in range(17)}
    assert np.array_equal(data.test_images, again.test_images)
    assert len(data.limited(200).train_classes) == pytest.approx(200, abs=10)


def test_the_split_takes_some_of_every_class() -> None:
    classes = np.array([0] * 50 + [1] * 5 + [2] * 2 + [3])
    kept, held = split_by_class(classes, 0.2, seed=1)
    assert sorted([*kept, *held]) == list(range(58))
    assert np.bincount(classes[held], minlength=4).tolist() == [10, 1, 1, 0]
    again, _ = split_by_class(classes, 0.2, seed=1)
    assert np.array_equal(kept, again)


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
        (
            {"x_train": np.zeros((2, 4, 4)), "y_train": [0, 1], "x_test": [[[0]]], "y_test": [0]},
            r"x_train is float64 \(2, 4, 4\) and y_train \(2,\); they must be uint8",
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


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        sources.load(f"mnist={tmp_path / 'none.npz'}")
    with pytest.raises(BadInput, match="no such folder or zip file"):
        sources.load(f"folder={tmp_path / 'none'}")
    with pytest.raises(BadInput, match="folder needs a path"):
        sources.load("folder")
    with pytest.raises(BadInput, match="takes no path"):
        sources.load("digits=x")


@pytest.mark.parametrize("as_zip", [False, True])
@pytest.mark.parametrize("prefix", ["", "all/pictures/"])
def test_a_folder_of_classes_is_split_here(as_zip: bool, prefix: str, tmp_path: Path) -> None:
    files = of_two_classes(prefix) | {f"{prefix}README.txt": b"not an image, and not meant to be"}
    path = zipped(tmp_path / "d.zip", files) if as_zip else written(tmp_path / "d", files)
    data = sources.load(f"folder={path}")
    assert data.labels == ("blue", "red")
    assert data.image_shape == (6, 6, 3)
    assert data.train_classes.tolist() == [0] * 4 + [1] * 4
    assert data.test_classes.tolist() == [0, 1]
    assert data.test_images[0, 0, 0].tolist() == [0, 0, 255]
    assert data.notes == ()


def test_train_and_test_folders_are_kept(tmp_path: Path) -> None:
    files = of_two_classes("train/", 3) | of_two_classes("test/", 2)
    data = sources.load(f"folder={zipped(tmp_path / 'd.zip', files)}")
    assert (len(data.train_classes), len(data.test_classes)) == (6, 4)
    assert data.labels == ("blue", "red")


def test_mixed_sizes_and_modes_become_one(tmp_path: Path) -> None:
    files = of_two_classes() | {
        "red/large.jpg": image((250, 0, 0), (90, 40), kind="JPEG"),
        "red/grey.png": image(128, (10, 10), "L"),
        "red/palette.gif": image(3, (8, 8), "P", "GIF"),
        "blue/clear.png": image((0, 0, 255, 0), (5, 9), "RGBA"),
        "blue/deep.png": image(40_000, (6, 6), "I;16"),
    }
    data = sources.load(f"folder={written(tmp_path / 'd', files)}")
    assert data.image_shape == (64, 64, 3)
    assert len(data.notes) == 1
    assert "6 combinations of size and mode" in data.notes[0]
    everything = np.concatenate([data.train_images, data.test_images])
    corners = {tuple(corner) for corner in everything[:, 0, 0].tolist()}
    assert {(255, 255, 255), (128, 128, 128), (156, 156, 156)} <= corners
    smaller = sources.load(f"folder={tmp_path / 'd'}", size=(8, 8), channels=1)
    assert smaller.image_shape == (8, 8, 1)


def test_corrupt_files_are_counted_named_and_left_out(tmp_path: Path) -> None:
    cut = image((9, 9, 9), (200, 200), kind="JPEG")
    files = of_two_classes() | {"red/broken.png": b"no image", "red/cut.jpg": cut[: len(cut) // 2]}
    data = sources.load(f"folder={written(tmp_path / 'd', files)}")
    assert len(data.train_classes) + len(data.test_classes) == 10
    assert data.notes[0] == "2 unreadable files left out: red/broken.png, red/cut.jpg"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no images; it must hold a sub-folder of images for each class, two at least"),
        ({"only/1.png": RED, "only/2.png": RED}, "only the class 'only'"),
        (
            of_two_classes() | {"green/1.png": RED},
            "images of class 'green': 1; it needs 2 at least, one to learn from and one to be held out",
        ),
        (
            of_two_classes() | {"green/1.png": b"broken", "green/2.png": RED},
            "images of class 'green': 1; .*; 1 files could not be read",
        ),
        ({"a/1.png": b"x", "b/1.png": b"x"}, "images of class 'a': 0"),
    ],
)
def test_folders_that_cannot_be_learned_from(files: Folder, message: str, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(BadInput, match=re.escape(str(tmp_path)) + ".*" + message):
        sources.load(f"folder={written(tmp_path / 'd', files)}")


def test_a_zip_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "d.zip").write_bytes(b"PK but no more")
    with pytest.raises(BadInput, match="neither a folder nor a zip file"):
        sources.load(f"folder={tmp_path / 'd.zip'}")


def test_a_few_of_cifar10(test_data: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(test_data / "cifar10.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(("/0000.jpg", "/0001.jpg"))]
        assert len(names) == 40
        few = {name: archive.read(name) for name in names}
    data = sources.load(f"cifar10={zipped(tmp_path / 'few.zip', few)}")
    assert data.image_shape == (32, 32, 3)
    assert (len(data.train_classes), len(data.test_classes)) == (20, 20)
    assert data.labels[0] == "airplane"

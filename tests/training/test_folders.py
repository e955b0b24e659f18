"""Folders and zips of images: classes, splits, sizes, and what cannot be learned from."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.folders import BLUE, RED, Folder, image, of_two_classes, written, zipped
from training import sources
from training.errors import BadInput


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


@pytest.mark.parametrize(
    ("train", "test"), [("train", "valid"), ("Training", "Test"), ("train", "test"), ("a/train", "a/val")]
)
def test_folders_of_splits_by_their_usual_names(train: str, test: str, tmp_path: Path) -> None:
    files = of_two_classes(f"{train}/", 3) | of_two_classes(f"{test}/", 2)
    data = sources.load(f"folder={written(tmp_path / 'd', files)}")
    assert data.labels == ("blue", "red")
    assert (len(data.train_classes), len(data.test_classes)) == (6, 4)


def test_one_image_of_a_class_will_do_where_others_are_held_out(tmp_path: Path) -> None:
    files = of_two_classes("train/", 1) | of_two_classes("test/", 2)
    folder = written(tmp_path / "d", files)
    data = sources.load(f"folder={folder}")
    assert (len(data.train_classes), len(data.test_classes)) == (2, 4)
    for name in of_two_classes("test/", 2):
        (folder / name).write_bytes(b"no image")
    with pytest.raises(BadInput, match="none of the images held out in it can be read"):
        sources.load(f"folder={folder}")


@pytest.mark.parametrize(
    ("size", "shape"), [((224, 10), (10, 224, 3)), ((225, 10), (64, 64, 3)), ((10, 225), (64, 64, 3))]
)
def test_large_images_are_made_smaller(
    size: tuple[int, int], shape: tuple[int, int, int], tmp_path: Path
) -> None:
    files = {f"{label}/{number}.png": image(0, size) for label in "ab" for number in range(2)}
    assert sources.load(f"folder={written(tmp_path / 'd', files)}").image_shape == shape


def test_every_folder_is_a_class_however_deep_its_images_are(tmp_path: Path) -> None:
    files = {f"cats/{kind}/{number}.png": RED for kind in ("persian", "siamese") for number in range(2)}
    files |= {f"dogs/{number}.png": BLUE for number in range(3)}
    data = sources.load(f"folder={written(tmp_path / 'd', files)}")
    assert data.labels == ("cats", "dogs")
    assert len(data.train_classes) + len(data.test_classes) == 7


def test_images_that_are_added_leave_the_others_where_they_were(tmp_path: Path) -> None:
    """Or a version would be compared with a later one by images that it learned from."""
    colours = np.random.default_rng(0).integers(0, 256, (220, 3)).tolist()
    files = {f"{number % 2}/{number}.png": image(tuple(colour)) for number, colour in enumerate(colours)}

    def split(folder: str, files: Folder) -> list[set[tuple[int, ...]]]:
        data = sources.load(f"folder={written(tmp_path / folder, files)}")
        return [{tuple(one[0, 0]) for one in part} for part in (data.train_images, data.test_images)]

    learned, held_out = split("before", dict(list(files.items())[:200]))
    assert (len(learned), len(held_out)) == (160, 40)
    _, held_out_now = split("after", files)
    assert len(held_out_now) == 44
    assert len(held_out_now & learned) <= 4
    renamed = {f"{name[0]}/again{len(name)}{name[2:]}": data for name, data in reversed(files.items())}
    assert split("renamed", renamed)[1] == held_out_now


def test_a_class_may_be_a_link_to_a_folder_elsewhere(tmp_path: Path) -> None:
    folder = written(tmp_path / "d", of_two_classes())
    written(tmp_path / "greens", {f"{number}.png": image((0, 255, 0)) for number in range(3)})
    (folder / "green").symlink_to(tmp_path / "greens")
    (folder / "red" / "around").symlink_to(folder)
    data = sources.load(f"folder={folder}")
    assert data.labels == ("blue", "green", "red")
    assert len(data.train_classes) + len(data.test_classes) == 13


def test_a_folder_beside_train_that_could_be_anything(tmp_path: Path) -> None:
    files = of_two_classes("train/") | of_two_classes("extra/")
    with pytest.raises(
        BadInput, match=r"beside the folder of images to train on there is 'extra'; .* in test,"
    ):
        sources.load(f"folder={written(tmp_path / 'd', files)}")


def test_images_of_one_size_that_a_camera_turned_have_two(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("RGB", (60, 40)).save(file, "JPEG", exif=exif)
    lying = image(0, (60, 40), kind="JPEG")
    files = {f"{label}/{number}.jpg": lying for label in ("a", "b") for number in range(3)}
    assert sources.load(f"folder={written(tmp_path / 'd', files)}").image_shape == (40, 60, 3)
    files |= {"a/3.jpg": file.getvalue()}
    assert sources.load(f"folder={written(tmp_path / 'd', files)}").image_shape == (64, 64, 3)
    turned = dict.fromkeys(files, file.getvalue())
    assert sources.load(f"folder={written(tmp_path / 'd', turned)}").image_shape == (60, 40, 3)


def test_two_kinds_are_noted_and_one_is_not(tmp_path: Path) -> None:
    alike = of_two_classes()
    assert sources.load(f"folder={written(tmp_path / 'd', alike)}").notes == ()
    other = alike | {"red/grey.png": image(128, mode="L")}
    data = sources.load(f"folder={written(tmp_path / 'd', other)}")
    assert data.notes == ("2 combinations of size and mode, all made (6, 6, 3)",)


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


def test_a_zip_with_a_password(tmp_path: Path) -> None:
    path = zipped(tmp_path / "d.zip", of_two_classes())
    data = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(signature)
        while at >= 0:
            data[at + flags] |= 1
            at = data.find(signature, at + 1)
    path.write_bytes(data)
    with pytest.raises(BadInput, match="the zip file asks for a password; unpack it and name the folder"):
        sources.load(f"folder={path}")

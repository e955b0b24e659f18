"""What cannot be used of a folder of images is left out, and noted; the rest is learned from."""

import os
import zipfile
from pathlib import Path

import pytest

from tests.training.folders import RED, image, of_two_classes, written, zipped
from training import sources
from training.errors import BadInput


def test_images_in_no_class_are_noted(tmp_path: Path) -> None:
    """Such as the unlabelled `test/1.jpg` of many a competition: "test" is no class of images."""
    files = of_two_classes("train/") | {"test/1.png": RED, "preview.png": RED}
    data = sources.load(f"folder={written(tmp_path / 'd', files)}")
    assert data.labels == ("blue", "red")
    assert len(data.train_classes) + len(data.test_classes) == 10
    assert data.notes == ("2 images in no class's folder left out: preview.png, test/1.png",)


def test_corrupt_files_are_counted_named_and_left_out(tmp_path: Path) -> None:
    cut = image((9, 9, 9), (200, 200), kind="JPEG")
    files = of_two_classes() | {"red/broken.png": b"no image", "red/cut.jpg": cut[: len(cut) // 2]}
    data = sources.load(f"folder={written(tmp_path / 'd', files)}")
    assert len(data.train_classes) + len(data.test_classes) == 10
    assert data.notes[0] == "2 unreadable files left out: red/broken.png, red/cut.jpg"


def test_images_of_other_kinds_are_noted_and_hidden_ones_are_not(tmp_path: Path) -> None:
    """Or hundreds of scans in TIFF would go missing without a word."""
    others = {f"red/{number}.tif": b"II*" for number in range(6)} | {"blue/1.JFIF": RED, "about.txt": b""}
    hidden = {".DS_Store": b"", "red/.thumbs/1.png": RED, "__MACOSX/red/1.png": RED, "blue/._1.png": b""}
    for place in (
        written(tmp_path / "d", of_two_classes() | others | hidden),
        zipped(tmp_path / "d.zip", of_two_classes() | others | hidden),
    ):
        data = sources.load(f"folder={place}")
        assert len(data.train_classes) + len(data.test_classes) == 10
        assert data.notes == (
            "7 images of other kinds left out: blue/1.JFIF, red/0.tif, red/1.tif, red/2.tif, red/3.tif ...",
        )


def test_as_many_as_a_note_has_room_for_are_all_named(tmp_path: Path) -> None:
    others = {f"red/{number}.tif": b"II*" for number in range(5)}
    data = sources.load(f"folder={written(tmp_path / 'd', of_two_classes() | others)}")
    assert data.notes == (
        "5 images of other kinds left out: red/0.tif, red/1.tif, red/2.tif, red/3.tif, red/4.tif",
    )


def test_links_to_nothing_are_noted(tmp_path: Path) -> None:
    """Such as those of a data set whose files were never fetched."""
    folder = written(tmp_path / "d", of_two_classes())
    (folder / "red" / "9.png").symlink_to(tmp_path / "never" / "fetched.png")
    data = sources.load(f"folder={folder}")
    assert len(data.train_classes) + len(data.test_classes) == 10
    assert data.notes == ("1 unreadable files left out: red/9.png",)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_noted(tmp_path: Path) -> None:
    folder = written(tmp_path / "d", of_two_classes() | {"green/1.png": RED})
    (folder / "green").chmod(0)
    data = sources.load(f"folder={folder}")
    (folder / "green").chmod(0o700)
    assert data.labels == ("blue", "red")
    assert data.notes == ("1 unreadable files left out: green/",)


def test_names_on_the_disk_that_are_no_text(tmp_path: Path) -> None:
    """Such as those of an archive that was unpacked as Latin-1."""
    folder = written(tmp_path / "d", of_two_classes())
    (folder / os.fsdecode(b"red/h\xfchner.png")).write_bytes(b"no image")
    data = sources.load(f"folder={folder}")
    assert data.notes == ("1 unreadable files left out: red/h\ufffdhner.png",)
    (folder / "red").rename(folder / os.fsdecode(b"gr\xfcn"))
    with pytest.raises(BadInput, match=r"the name of the class 'gr\\udcfcn' is not UTF-8; rename its folder"):
        sources.load(f"folder={folder}")


def test_a_damaged_zip_costs_the_files_that_are(tmp_path: Path) -> None:
    path, files = tmp_path / "d.zip", of_two_classes(count=6)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        where = archive.getinfo("red/2.png").header_offset + 30 + len("red/2.png")
    broken = bytearray(path.read_bytes())
    broken[where] ^= 0b110  # the kind of the first deflated block: zlib raises an error of its own
    path.write_bytes(broken)
    data = sources.load(f"folder={path}")
    assert data.notes == ("1 unreadable files left out: red/2.png",)
    assert len(data.train_classes) + len(data.test_classes) == 11


def test_links_around_and_through_files_are_noted(tmp_path: Path) -> None:
    folder = written(tmp_path / "d", of_two_classes())
    (folder / "blue" / "8.png").symlink_to("8.png")
    (folder / "red" / "9.png").symlink_to("1.png/9.png")
    data = sources.load(f"folder={folder}")
    assert len(data.train_classes) + len(data.test_classes) == 10
    assert data.notes == ("2 unreadable files left out: blue/8.png, red/9.png",)


def test_empty_folders_are_noted(tmp_path: Path) -> None:
    """Such as that of a class whose images are still to come: it is none of the labels."""
    folder = written(tmp_path / "d", of_two_classes() | {"docs/about.txt": b"", "green/.gitkeep": b""})
    (folder / "red" / "more" / "of it").mkdir(parents=True)
    (folder / ".cache" / "empty").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    for place in (folder, tmp_path / "d.zip"):
        data = sources.load(f"folder={place}")
        assert data.labels == ("blue", "red")
        assert data.notes == ("2 empty folders left out: green/, red/more/of it/",)

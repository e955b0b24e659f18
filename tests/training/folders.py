"""Folders and zips of small images, for the tests of what reads them."""

import io
import zipfile
from pathlib import Path
from typing import Any

from PIL import Image

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

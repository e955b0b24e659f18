"""What `--data NAME[=PATH]` can name, as arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.arrays import HELD_OUT, SPLIT_SEED, ImageData, split_by_class
from training.errors import BadInput
from training.folders import image_folder

_DIGITS = tuple(str(digit) for digit in range(10))
_KERAS_LABELS: dict[str, tuple[str, ...]] = {
    "mnist": _DIGITS,
    "fashion_mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "cifar10": (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
}
NAMES = ("digits", *_KERAS_LABELS, "folder")

_CHANNELS = ((), (1,), (3,))  # an image's last dimension, which grey ones may leave out

Arrays = dict[str, NDArray[Any]]


def load(
    spec: str,
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    examples: int | None = None,
) -> ImageData:
    """The data set of NAME or NAME=PATH, with at most `examples` to train on.

    Without a path, `digits` is what scikit-learn brings along, and `mnist`, `fashion_mnist` and `cifar10` are
    fetched and cached by Keras. With one, they are read from an `.npz` file in Keras's layout, or from a
    folder or zip of images. `folder=PATH` is any folder or zip of images. Those of a folder or zip get
    `size` (height, width) and `channels`; None leaves what suits them.
    """
    return _load(*parsed(spec), size, channels).limited(examples)


def parsed(spec: str) -> tuple[str, Path | None]:
    """The name and the path of NAME[=PATH].

    Raises `BadInput` if there is no such data set, or nothing at the path; what is there is not looked at.
    """
    name, _, rest = spec.partition("=")
    path = _path(rest) if rest else None
    if name not in NAMES:
        raise BadInput(f"there is no data set {name!r}; there are: {', '.join(NAMES)}")
    if name == "digits" and path is not None:
        raise BadInput("digits comes with scikit-learn and takes no path")
    if name == "folder" and path is None:
        raise BadInput("folder needs a path: --data folder=PATH, a folder or a zip of images")
    if path is not None and not path.exists():
        raise BadInput(f"{path}: no such file or folder, in --data {spec}")
    return name, path


def _load(name: str, path: Path | None, size: tuple[int, int] | None, channels: int | None) -> ImageData:
    if path is None:
        return digits() if name == "digits" else _from_keras(name)
    if name != "folder" and path.suffix == ".npz":
        return _from_npz(name, path)
    return image_folder(name_of(path) if name == "folder" else name, path, size, channels)


def _path(text: str) -> Path:
    """A path that may begin with `~`: after a `=` the shell leaves it alone."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise BadInput(f"{text}: {error}") from error


def name_of(path: Path) -> str:
    """The name of a file or folder, without its extension."""
    found = path.absolute()  # "." has no name
    return found.name if found.is_dir() else found.stem


def digits() -> ImageData:
    """scikit-learn's 1,797 scans of handwritten digits, 8x8x1; a fifth of each class is held out.

    The values 0..16 become pixels by round(value * 255 / 16).
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * 255 / 16).astype(np.uint8)[..., np.newaxis]
    classes = bunch.target.astype(np.int64)
    kept, held = split_by_class(classes, HELD_OUT, SPLIT_SEED)
    return ImageData("digits", _DIGITS, images[kept], classes[kept], images[held], classes[held])


def _from_npz(name: str, path: Path) -> ImageData:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in ("x_train", "y_train", "x_test", "y_test")}
    except Exception as error:  # a damaged file makes NumPy, zipfile and zlib raise almost anything
        raise BadInput(
            f"{path}: not an .npz file with x_train, y_train, x_test and y_test ({error})"
        ) from error
    return _from_arrays(name, arrays)


def _from_keras(name: str) -> ImageData:
    import keras

    try:
        (x_train, y_train), (x_test, y_test) = getattr(keras.datasets, name).load_data()
    except Exception as error:  # the kinds differ by what fails: name, connection, checksum
        raise BadInput(
            f"{name} could not be fetched; name a local file with --data {name}=PATH.npz ({error})"
        ) from error
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    return _from_arrays(name, arrays)


def _from_arrays(name: str, arrays: Arrays) -> ImageData:
    labels = _KERAS_LABELS[name]
    for part in ("train", "test"):
        images, classes = arrays[f"x_{part}"], arrays[f"y_{part}"]
        flat = classes.reshape(-1)
        if (
            images.ndim not in (3, 4)
            or images.shape[3:] not in _CHANNELS
            or images.dtype != np.uint8
            or not np.issubdtype(flat.dtype, np.integer)
            or not 0 < len(images) == len(flat)
        ):
            raise BadInput(
                f"{name}: x_{part} is {images.dtype} {images.shape} and"
                f" y_{part} {classes.dtype} {classes.shape};"
                " they must be uint8 [N, H, W], [N, H, W, 1] or [N, H, W, 3] and whole numbers [N], N not 0"
            )
        if not 0 <= int(flat.min()) <= int(flat.max()) < len(labels):
            raise BadInput(f"{name}: y_{part} has classes outside 0..{len(labels) - 1}")
        arrays[f"x_{part}"] = images if images.ndim == 4 else images[..., np.newaxis]
        arrays[f"y_{part}"] = flat.astype(np.int64)
    train, test = arrays["x_train"].shape[1:], arrays["x_test"].shape[1:]
    if train != test:
        raise BadInput(f"{name}: the images of x_train are {train} and those of x_test {test}")
    return ImageData(name, labels, arrays["x_train"], arrays["y_train"], arrays["x_test"], arrays["y_test"])

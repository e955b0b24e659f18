"""Image data sets as arrays: what `--data NAME[=PATH]` can name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import BadInput

Images = NDArray[np.uint8]
Classes = NDArray[np.int64]

_DIGITS = tuple(str(digit) for digit in range(10))
_SPLIT_SEED = 0  # the held-out examples must be the same in every run, or nothing can be compared


@dataclass(frozen=True)
class ImageData:
    """Labelled images: uint8 [N, H, W, C] and int64 [N] for training, and the same held out for the end."""

    name: str
    labels: tuple[str, ...]
    train_images: Images
    train_classes: Classes
    test_images: Images
    test_classes: Classes
    notes: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        height, width, channels = self.train_images.shape[1:]
        return height, width, channels


def split_by_class(classes: Classes, held_out: float, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices (kept, held out), with the same share held out of every class; a class of one is kept whole."""
    random = np.random.default_rng(seed)
    kept, held = [], []
    for value in np.unique(classes):
        members = random.permutation(np.flatnonzero(classes == value))
        count = min(max(1, round(len(members) * held_out)), len(members) - 1)
        held.append(members[:count])
        kept.append(members[count:])
    return np.sort(np.concatenate(kept)), np.sort(np.concatenate(held))


def digits() -> ImageData:
    """scikit-learn's 1,797 scans of handwritten digits, 8x8x1; a fifth of each class is held out.

    The values 0..16 become pixels by round(value * 255 / 16).
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * 255 / 16).astype(np.uint8)[..., np.newaxis]
    classes = bunch.target.astype(np.int64)
    kept, held = split_by_class(classes, 0.2, _SPLIT_SEED)
    return ImageData("digits", _DIGITS, images[kept], classes[kept], images[held], classes[held])


def arrays_in_npz(name: str, path: Path, labels: tuple[str, ...]) -> ImageData:
    """A data set in Keras's layout: `x_train`, `y_train`, `x_test`, `y_test` in one `.npz` file."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in ("x_train", "y_train", "x_test", "y_test")}
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; --data {name}=PATH names an .npz file") from None
    except (KeyError, ValueError, OSError) as error:
        raise BadInput(
            f"{path}: not an .npz file with x_train, y_train, x_test and y_test ({error})"
        ) from error
    return _from_arrays(name, arrays, labels)


def _from_arrays(name: str, arrays: dict[str, Any], labels: tuple[str, ...]) -> ImageData:
    for key in ("x_train", "x_test"):
        images = arrays[key]
        if images.ndim == 3:
            arrays[key] = images[..., np.newaxis]
        elif images.ndim != 4:
            raise BadInput(f"{name}: {key} has shape {images.shape}; images are [N, H, W] or [N, H, W, C]")
    return ImageData(
        name,
        labels,
        arrays["x_train"].astype(np.uint8),
        arrays["y_train"].reshape(-1).astype(np.int64),
        arrays["x_test"].astype(np.uint8),
        arrays["y_test"].reshape(-1).astype(np.int64),
    )


def _mnist(path: Path | None) -> ImageData:
    if path is None:
        raise BadInput("mnist needs its file: --data mnist=PATH.npz")
    return arrays_in_npz("mnist", path, _DIGITS)


_SOURCES: dict[str, Callable[[Path | None], ImageData]] = {
    "digits": lambda _: digits(),
    "mnist": _mnist,
}


def load(spec: str) -> ImageData:
    """The data set that `--data` names, as NAME or NAME=PATH."""
    name, _, path = spec.partition("=")
    if name not in _SOURCES:
        raise BadInput(f"there is no data set {name!r}; there are: {', '.join(_SOURCES)}")
    return _SOURCES[name](Path(path) if path else None)

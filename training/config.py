"""Presets: what each recipe shows, on what data, with which hyperparameters, and what to expect of it.

Imports the standard library only, so that `sluice recipes` and `sluice train --help` answer at once.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

from training.errors import BadInput
from training.publish import versions

# Of MNIST's 54,000 digits 9 epochs in batches of 64 are as good as 30; 30 of the small ones are a tenth.
MOST_STEPS = 8_000
HIGHEST_SEED = 2**32 - 1  # what NumPy's generators take
PRECISIONS = ("float32", "bfloat16", "float16")
AUGMENTATIONS = ("none", "shift", "shift-flip")
STRATEGIES = ("none", "mirrored", "multiworker")
# For the recipes that have several; the models define what each consists of.
DEPTHS = {
    "resnet": (
        *("resnet8", "resnet14", "resnet20", "resnet32", "resnet56"),
        *("resnet18", "resnet34", "resnet50"),
    ),
    "vgg": ("vgg4", "vgg7", "vgg16"),
}
TABLES = ("line", "diabetes")  # data without images, which comes with the recipes for tables

# A model's name is also a folder's, and part of the paths of the gateway's API.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Hyperparameters:
    """How a model is trained; a preset's values, or the user's in their place.

    `learning_rate` is the peak of a cosine with `warmup` (a share of all steps) before it. `patience` is the
    number of epochs without a lower validation loss before training stops; the best epoch's weights are kept.
    `mixed_precision` is the type of the computations while training: float32, bfloat16 or float16.
    """

    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 0.0
    patience: int = 8
    augment: str = "none"
    mixed_precision: str = "float32"
    seed: int = 7


@dataclass(frozen=True)
class Options:
    """What the user may choose; None leaves the preset's or the data's value.

    Raises:
        BadInput: a name, seed, learning rate, precision, augmentation or strategy is not valid.
    """

    data: str | None = None
    out: Path = Path("models")
    name: str | None = None
    depth: str | None = None
    image_size: int | None = None
    examples: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    augment: str | None = None
    mixed_precision: str | None = None
    seed: int | None = None
    patience: int | None = None
    precision: str = "float32"
    freeze: bool = True
    resume: bool = False
    tensorboard: Path | None = None
    strategy: str = "none"

    def __post_init__(self) -> None:
        if self.name is not None:
            check_name(self.name)
        if self.seed is not None and not 0 <= self.seed <= HIGHEST_SEED:
            raise BadInput(f"the seed is {self.seed}; it must be within 0..{HIGHEST_SEED}")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise BadInput(f"the learning rate is {self.learning_rate}; it must be a number above 0")
        for what, value, known in (
            ("precision", self.precision, PRECISIONS),
            ("precision", self.mixed_precision, PRECISIONS),
            ("augmentation", self.augment, AUGMENTATIONS),
            ("strategy", self.strategy, STRATEGIES),
        ):
            if value not in (None, *known):
                raise BadInput(f"there is no {what} {value!r}; there are: {', '.join(known)}")

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of a folder's images, if the user chose."""
        return None if self.image_size is None else (self.image_size, self.image_size)

    def check_folders(self) -> None:
        """Raises BadInput if the model, or the logs of its training, cannot be written where they belong."""
        check_place(self.out, self.name)
        if self.tensorboard is not None:
            check_folder("--tensorboard", self.tensorboard)

    def applied_to(self, values: Hyperparameters) -> Hyperparameters:
        """The hyperparameters with what the user chose in place of the preset's."""
        names = ("epochs", "batch_size", "learning_rate", "augment", "mixed_precision", "seed", "patience")
        return replace(
            values, **{name: getattr(self, name) for name in names if getattr(self, name) is not None}
        )

    def within_steps(self, values: Hyperparameters, examples: int) -> Hyperparameters:
        """`values` with fewer epochs if that many training examples need no more, unless the user chose.

        Presets count epochs of small data. The learning rate falls over the planned epochs, so a run that
        stops long before them never gets to the end of its schedule.
        """
        if self.epochs is not None:
            return values
        most = max(1, MOST_STEPS // math.ceil(examples / values.batch_size))
        return replace(values, epochs=min(values.epochs, most))


@dataclass(frozen=True)
class Preset:
    """One recipe as a user sees it. `module` is imported only when the recipe is run."""

    name: str
    shows: str
    data: str
    expect: str
    module: str
    hyperparameters: Hyperparameters

    def check(self, options: Options) -> None:
        """Raises BadInput for data that the recipe is not made for, and for options that it does not have."""
        chosen = options.data or self.data
        takes_images = self.data not in TABLES or self.name == "simple-dense"
        if chosen != self.data and (chosen in TABLES or not takes_images):
            made_for = f"--data {self.data}" if self.data in TABLES else "images"
            more = ", or images" if takes_images and self.data in TABLES else ""
            raise BadInput(f"{self.name} is made for {made_for}{more}, not {chosen}")
        if options.depth is not None and self.name not in DEPTHS:
            raise BadInput(f"--depth is for {' and '.join(DEPTHS)}, not for {self.name}")
        if options.depth is not None and options.depth not in DEPTHS[self.name]:
            there = ", ".join(DEPTHS[self.name])
            raise BadInput(f"{self.name} has no depth {options.depth!r}; there are: {there}")
        for flag in ("image_size", "examples", "augment"):
            if chosen in TABLES and getattr(options, flag) is not None:
                raise BadInput(
                    f"--{flag.replace('_', '-')} is for recipes of images, not for {self.name} on {chosen}"
                )


_IMAGES, _PAIRS, _TABLES = "training.recipes.images", "training.recipes.pairs", "training.recipes.tables"
_SMALL = Hyperparameters(epochs=30, batch_size=64, learning_rate=2e-3, patience=6)
_RESIDUAL = Hyperparameters(epochs=30, learning_rate=4e-3, weight_decay=1e-4, augment="shift")
_LINE = Hyperparameters(epochs=60, batch_size=32, learning_rate=0.1, patience=60)

_PRESETS = (
    Preset(
        "sequential",
        "Sequential: flatten, a hidden layer of 128, softmax",
        "digits",
        "accuracy 0.95 in 5 s",
        _IMAGES,
        _SMALL,
    ),
    Preset(
        "functional",
        "the same written with the functional API",
        "digits",
        "accuracy 0.95 in 5 s",
        _IMAGES,
        _SMALL,
    ),
    Preset(
        "branches",
        "two named outputs (class, odd or even), each with its loss and weight",
        "digits",
        "accuracy 0.95 in 5 s",
        _IMAGES,
        _SMALL,
    ),
    Preset(
        "siamese",
        "two images through one shared tower, contrastive loss with a margin",
        "digits",
        "pair accuracy 0.97 in 15 s",
        _PAIRS,
        Hyperparameters(epochs=30, batch_size=64, learning_rate=2e-3, patience=8),
    ),
    Preset(
        "huber",
        "a custom loss three ways: function, wrapped function, class",
        "line",
        "three equal fits in 10 s",
        _TABLES,
        _LINE,
    ),
    Preset(
        "lambda-abs",
        "a Lambda layer that takes absolute values, beside two ReLUs",
        "digits",
        "accuracy 0.96 in 15 s",
        _IMAGES,
        _SMALL,
    ),
    Preset(
        "lambda-relu",
        "a Lambda layer: ReLU with a threshold of its own, beside two others",
        "digits",
        "accuracy 0.95 in 15 s",
        _IMAGES,
        _SMALL,
    ),
    Preset(
        "simple-dense",
        "a custom trainable layer; learns y = 2x - 1, or images with --data",
        "line",
        "w 2.00, b -1.00 in 5 s",
        _TABLES,
        _LINE,
    ),
    Preset(
        "wide-deep",
        "Wide & Deep: two inputs, an auxiliary output, functional",
        "diabetes",
        "R2 0.44 in 5 s",
        _TABLES,
        Hyperparameters(epochs=80, batch_size=32, learning_rate=3e-3, patience=15),
    ),
    Preset(
        "wide-deep-class",
        "the same as a Model subclass",
        "diabetes",
        "R2 0.44 in 5 s",
        _TABLES,
        Hyperparameters(epochs=80, batch_size=32, learning_rate=3e-3, patience=15),
    ),
    Preset(
        "residual",
        "residual blocks made in loops; a block used a chosen number of times",
        "digits",
        "accuracy 0.98 in 15 s",
        _IMAGES,
        _RESIDUAL,
    ),
    Preset(
        "resnet",
        "subclassed ResNet of IdentityBlocks; --depth resnet8 to resnet56, 18, 34, 50",
        "digits",
        "accuracy 0.98 in 15 s",
        _IMAGES,
        _RESIDUAL,
    ),
    Preset(
        "vgg",
        "blocks made by loops over a table, as a subclass; --depth vgg4, vgg7, vgg16",
        "digits",
        "accuracy 0.98 in 15 s",
        _IMAGES,
        Hyperparameters(epochs=30, learning_rate=2e-3, augment="shift"),
    ),
)

PRESETS: dict[str, Preset] = {preset.name: preset for preset in _PRESETS}


def preset(name: str) -> Preset:
    """The preset of that name; a typo is answered with the nearest one."""
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(PRESETS)}"
    raise BadInput(f"there is no recipe {name!r}; {hint}")


def check_name(name: str) -> None:
    """Raises BadInput for what cannot be the name of a model."""
    if not _NAME.fullmatch(name):
        raise BadInput(
            f"{name!r} is not a valid name for a model: letters, digits, `_`, `.`, `-`, no dot in front;"
            " choose one with --name"
        )


def check_model_file(path: Path) -> None:
    """Raises BadInput for what can be neither a `.keras` file nor the folder of a SavedModel."""
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder")
    if not path.is_dir() and path.suffix != ".keras":
        raise BadInput(f"{path}: neither a .keras file nor a SavedModel folder{_instead_of(path)}")
    if path.is_dir() and not _is_saved_model(path):
        below = [folder for version in versions(path) if _is_saved_model(folder := path / str(version))]
        raise BadInput(f"{path}: no saved_model.pb in it{f'; there is one in {below[-1]}' if below else ''}")
    if path.is_file() and not zipfile.is_zipfile(path):
        raise BadInput(
            f"{path} is no .keras file, which is a zip archive; it may be cut short, or of another format"
        )


def _is_saved_model(folder: Path) -> bool:
    return any((folder / f"saved_model.{kind}").exists() for kind in ("pb", "pbtxt", "cpb"))


def _instead_of(path: Path) -> str:
    """How a file of Keras' older format becomes one that can be published."""
    if path.name.endswith(".weights.h5"):
        return (
            "; it holds weights only: load them into their model, and `model.save(...)` that as a .keras file"
        )
    if path.suffix in (".h5", ".hdf5"):
        new = path.with_suffix(".keras").name
        return f"; `keras.models.load_model({path.name!r}).save({new!r})` makes a .keras file of it"
    return ""


def check_place(out: Path, name: str | None) -> None:
    """Raises BadInput if no model, or none of that name, can be published in this folder of models."""
    check_folder("--out", out)
    if name is not None:
        check_name(name)
        check_folder("--out", out / name)


def check_folder(flag: str, folder: Path) -> None:
    """Raises BadInput if a flag's folder, which need not exist yet, cannot be written to."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not there.is_dir():
        raise BadInput(f"{flag} {folder}: {there} is not a folder")
    if not os.access(there, os.W_OK):
        raise BadInput(f"{flag} {folder}: {there} may not be written to")


def check_file(flag: str, file: Path) -> None:
    """Raises BadInput if no file can be written where a flag says."""
    if file.is_dir():
        raise BadInput(f"{flag} {file}: it is a folder")
    if not file.parent.is_dir():
        raise BadInput(f"{flag} {file}: there is no folder {file.parent}")

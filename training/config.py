"""Presets: what each recipe shows, on what data, with which hyperparameters, and what to expect of it.

Imports the standard library only, so that `sluice recipes` and `sluice train --help` answer at once.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from training.errors import BadInput


@dataclass(frozen=True)
class Hyperparameters:
    """How a model is trained; a preset's values, or the user's in their place.

    `learning_rate` is the peak of a cosine with `warmup` (a share of all steps) before it. `patience` is the
    number of epochs without a lower validation loss before training stops; the best epoch's weights are kept.
    """

    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 0.0
    patience: int = 8
    augment: str = "none"
    precision: str = "float32"
    seed: int = 7


@dataclass(frozen=True)
class Preset:
    """One recipe as a user sees it. `module` is imported only when the recipe is run."""

    name: str
    shows: str
    data: str
    expect: str
    module: str
    hyperparameters: Hyperparameters


_PRESETS = (
    Preset(
        name="resnet",
        shows="subclassed ResNet of IdentityBlocks; --depth takes resnet8 ... resnet56, resnet18, 34, 50",
        data="digits",
        expect="0.98 in 30 s",
        module="training.recipes.images",
        hyperparameters=Hyperparameters(
            epochs=30, batch_size=64, learning_rate=4e-3, weight_decay=1e-4, augment="shift"
        ),
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

"""The flags of `train` and its neighbours, as typer reads them: type, bounds, and what `--help` says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_RECIPES = "the recipe's"
_TRAINING = "How to train"

Out = Annotated[Path, typer.Option(help="Folder of models; the version goes to OUT/NAME/VERSION.")]
Data = Annotated[
    str | None,
    typer.Option(
        help="digits, mnist, fashion_mnist or cifar10, these also as NAME=PATH of an .npz file,"
        " or folder=PATH of a folder or zip of images.",
        show_default="what the recipe or the model was made for",
    ),
]
Freeze = Annotated[bool, typer.Option(help="Fold the weights into the graph as constants.")]
Version = Annotated[Path, typer.Argument(help="A version's folder, or a model's for its newest.")]

Recipe = Annotated[str, typer.Argument(help="What to train; `sluice recipes` lists them.")]
Name = Annotated[
    str | None, typer.Option(help="Name of the model.", show_default="the data's or the recipe's")
]
Depth = Annotated[
    str | None,
    typer.Option(
        help="resnet8, 14, 20, 32, 56, 18, 34, 50; vgg4, 7, 16: of the recipes resnet and vgg.",
        show_default="by the images' size",
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        min=1, help="Side to resize a folder's images to, in pixels.", show_default="the images' own"
    ),
]
Examples = Annotated[
    int | None, typer.Option(min=1, help="Train on only about this many examples.", show_default="all")
]
Epochs = Annotated[
    int | None,
    typer.Option(min=1, help="How many at most.", show_default=_RECIPES, rich_help_panel=_TRAINING),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1, help="Examples per step, over all devices.", show_default=_RECIPES, rich_help_panel=_TRAINING
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option(
        help="Peak of the cosine after the warm-up.",
        show_default=_RECIPES,
        rich_help_panel=_TRAINING,
    ),
]
Augment = Annotated[
    str | None,
    typer.Option(help="none, shift or shift-flip.", show_default=_RECIPES, rich_help_panel=_TRAINING),
]
Seed = Annotated[
    int | None,
    typer.Option(help="Same seed, same data: same model.", show_default=_RECIPES, rich_help_panel=_TRAINING),
]
Patience = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Epochs without a lower validation loss before it stops.",
        show_default=_RECIPES,
        rich_help_panel=_TRAINING,
    ),
]
MixedPrecision = Annotated[
    str | None,
    typer.Option(
        help="Train in bfloat16 or float16, with float32 weights.",
        show_default="float32",
        rich_help_panel=_TRAINING,
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on where a killed run stopped.", rich_help_panel=_TRAINING)
]
TensorBoard = Annotated[
    Path | None,
    typer.Option(help="Write TensorBoard logs here.", show_default="none", rich_help_panel=_TRAINING),
]
Strategy = Annotated[
    str,
    typer.Option(
        help="none, mirrored (all devices) or multiworker (as TF_CONFIG says).", rich_help_panel=_TRAINING
    ),
]
Precision = Annotated[
    str,
    typer.Option(help="The type to compute in: float32, bfloat16 or float16."),
]

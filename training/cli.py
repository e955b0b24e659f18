"""The commands `train` and `publish` and what belongs to them.

Each command imports TensorFlow in its body: `--help` must not wait seconds for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from training.config import Options, preset
from training.errors import BadInput, TrainingError

Out = Annotated[Path, typer.Option(help="Folder of models; the version goes to OUT/NAME/VERSION.")]
Data = Annotated[
    str | None,
    typer.Option(
        help="digits, mnist, fashion_mnist or cifar10, these also as NAME=PATH of an .npz file,"
        " or folder=PATH of a folder or zip of images.",
        show_default="what the recipe or the model was made for",
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(min=1, help="Side to resize a folder's images to.", show_default="the images' own"),
]


def train(
    recipe: Annotated[str, typer.Argument(help="What to train; `sluice recipes` lists them.")],
    data: Data = None,
    out: Out = Path("models"),
    name: Annotated[
        str | None, typer.Option(help="Name of the model.", show_default="the data's or the recipe's")
    ] = None,
    depth: Annotated[
        str | None, typer.Option(help="resnet8, 14, 20, 32, 56, 18, 34, 50; vgg4, 7, 16.")
    ] = None,
    image_size: ImageSize = None,
    examples: Annotated[int | None, typer.Option(min=1, help="Train on so many examples only.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Of all replicas together.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=0.0, help="Peak of the cosine after the warm-up.")
    ] = None,
    augment: Annotated[str | None, typer.Option(help="none, shift or shift-flip.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same data: same model.")] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Epochs without a lower validation loss before it stops.")
    ] = None,
    mixed_precision: Annotated[
        str | None, typer.Option(help="Train in bfloat16 or float16, with float32 weights.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Publish a model that computes in float32, bfloat16 or float16.")
    ] = "float32",
    freeze: Annotated[bool, typer.Option(help="Fold the weights into the graph as constants.")] = True,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a killed run was.")] = False,
    tensorboard: Annotated[Path | None, typer.Option(help="Write TensorBoard logs here.")] = None,
    strategy: Annotated[
        str, typer.Option(help="none, mirrored (all devices) or multiworker (as TF_CONFIG says).")
    ] = "none",
) -> None:
    """Train a recipe and publish the model as the next version.

    The version appears whole, by one rename, after it was loaded and tried as TensorFlow Serving would.
    """
    options = Options(
        data=data,
        out=out,
        name=name,
        depth=depth,
        image_size=image_size,
        examples=examples,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        augment=augment,
        mixed_precision=mixed_precision,
        seed=seed,
        patience=patience,
        precision=precision,
        freeze=freeze,
        resume=resume,
        tensorboard=tensorboard,
        strategy=strategy,
    )
    console = Console()
    with _user_errors():
        preset(recipe)
    with _user_errors(), _quiet_tensorflow():
        from training import job

        published = job.train(recipe, options, console)
    if published is None:
        console.print("this worker is done; the chief publishes", highlight=False)
        return
    _print_metrics(console, published.card["metrics"])
    console.print(f"published {published.folder}", highlight=False, soft_wrap=True)
    console.print(f"next: sluice serve --models {out}", highlight=False, soft_wrap=True)


def _print_metrics(console: Console, metrics: dict[str, Any]) -> None:
    for name, value in metrics.get("variants", {}).items():
        console.print(f"  {name}: {value:.4f}", highlight=False)
    for name, value in metrics.items():
        if isinstance(value, float):
            console.print(f"{name.replace('held_out_', 'held-out ')} {value:.4f}", highlight=False)


@contextmanager
def _user_errors() -> Iterator[None]:
    """Errors as one line on stderr: exit 2 for what the user can mend in the command, 1 for the rest."""
    try:
        yield
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2 if isinstance(error, BadInput) else 1) from None
    except ModuleNotFoundError as error:
        print(
            f"error: {error.name} is not installed; it comes with the extra: sluice[train]", file=sys.stderr
        )
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print("interrupted; nothing was published", file=sys.stderr)
        raise typer.Exit(130) from None


@contextmanager
def _quiet_tensorflow() -> Iterator[None]:
    """Keeps TensorFlow's start-up messages from the user; must come before its import."""
    import warnings

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _silenced_stderr():
            import tensorflow as tf
        tf.get_logger().setLevel("ERROR")
        import logging

        logging.getLogger("absl").setLevel(logging.ERROR)
        yield


@contextmanager
def _silenced_stderr() -> Iterator[None]:
    """File descriptor 2 onto /dev/null: C++ code logs there before it has read any setting."""
    sys.stderr.flush()
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)

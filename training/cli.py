"""The commands `train` and `publish` and what belongs to them.

Each command imports TensorFlow in its body: `--help` must not wait seconds for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from training.errors import BadInput, TrainingError

Out = Annotated[Path, typer.Option(help="Folder of models; the version goes to OUT/NAME/VERSION.")]
Name = Annotated[str | None, typer.Option(help="Name of the model.", show_default="the name of the data")]


def train(
    recipe: Annotated[str, typer.Argument(help="What to train; `sluice recipes` lists them.")],
    data: Annotated[
        str | None,
        typer.Option(help="digits or mnist=PATH.npz.", show_default="what the recipe was made for"),
    ] = None,
    out: Out = Path("models"),
    name: Name = None,
    depth: Annotated[
        str | None, typer.Option(help="Of a resnet: resnet8 ... resnet56, resnet18, resnet34, resnet50.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0.0, help="Its peak.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same data: same model.")] = None,
) -> None:
    """Train a recipe and publish the model as the next version.

    The version appears whole, by one rename, after it was loaded and tried as TensorFlow Serving would.
    """
    console = Console()
    with _user_errors(), _quiet_tensorflow():
        from training import job

        options = job.Options(
            data=data,
            out=out,
            name=name,
            depth=depth,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
        )
        published = job.train(recipe, options, console)
    accuracy = published.card["metrics"].get("held_out_accuracy")
    if accuracy is not None:
        console.print(f"held-out accuracy {accuracy:.4f}", highlight=False)
    console.print(f"published {published.folder}", highlight=False, soft_wrap=True)
    console.print(f"next: sluice serve --models {out}", highlight=False, soft_wrap=True)


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

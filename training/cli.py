"""The commands `train`, `publish` and those that go with them.

Each command imports TensorFlow in its body, after all checks that do not need it: `--help` and a typo must
not wait seconds for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from training import flags
from training.config import PRESETS, TABLES, Options, check_file, check_model_file, check_place, preset
from training.errors import BadInput, TrainingError
from training.labels import read_labels
from training.publish import version_folder

MODELS = Path("models")


def train(
    recipe: flags.Recipe,
    data: flags.Data = None,
    out: flags.Out = MODELS,
    name: flags.Name = None,
    depth: flags.Depth = None,
    image_size: flags.ImageSize = None,
    examples: flags.Examples = None,
    epochs: flags.Epochs = None,
    batch_size: flags.BatchSize = None,
    learning_rate: flags.LearningRate = None,
    augment: flags.Augment = None,
    seed: flags.Seed = None,
    patience: flags.Patience = None,
    mixed_precision: flags.MixedPrecision = None,
    precision: flags.Precision = "float32",
    freeze: flags.Freeze = True,
    resume: flags.Resume = False,
    tensorboard: flags.TensorBoard = None,
    strategy: flags.Strategy = "none",
) -> None:
    """Train a recipe and publish the model as the next version.

    The version is published by one rename, after it was loaded and tried as TensorFlow Serving would.
    """
    console = _console()
    with _user_errors():
        chosen = preset(recipe)
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
        chosen.check(options)
        options.check_folders()
        _check_data(data)
    with _user_errors(), _quiet_tensorflow():
        from training import job

        published = job.train(recipe, options, console)
    if published is None:
        console.print("this worker is done; the chief publishes")
        return
    _print_metrics(console, published.card["metrics"])
    _print_published(console, published.folder, out)


def publish(
    path: Annotated[Path, typer.Argument(help="A .keras file or a SavedModel folder.")],
    out: flags.Out = MODELS,
    name: Annotated[str | None, typer.Option(help="Name of the model.", show_default="the file's")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Text file with one label per line.", show_default="the classes' numbers"),
    ] = None,
    pixel_scale: Annotated[
        str,
        typer.Option(metavar="NUMBER", help="What pixels 0..255 are multiplied by; 1/255 makes them 0..1."),
    ] = "1",
    freeze: flags.Freeze = True,
    imports: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            metavar="MODULE",
            help="Module that registers the model's own layers, losses and functions; may be repeated.",
            show_default="none",
        ),
    ] = None,
) -> None:
    """Publish a model of your own as the next version, checked and with all the signatures.

    A .keras file is loaded without running code in it: Lambda layers must name registered functions. Classes
    of your own must be registered (keras.saving.register_keras_serializable) by a module that --import names.
    """
    console = _console()
    with _user_errors():
        scale = _number("--pixel-scale", pixel_scale)
        check_model_file(path)
        check_place(out, name)
        if labels is not None and not labels.is_fifo():  # a pipe can be read only once
            read_labels(labels)
    with _user_errors(), _quiet_tensorflow():
        from training import foreign, user_modules

        user_modules.import_all(imports or ())
        published = foreign.publish_file(path, out, name, labels, scale, freeze)
    for note in published.notes:
        console.print(f"note: {note}", soft_wrap=True)
    _print_published(console, published.folder, out)


def _number(flag: str, text: str) -> float:
    """A flag's value, a number or a fraction."""
    try:
        return float(Fraction(text)) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError):
        raise BadInput(
            f"{flag} {text}: it is neither a number, such as 0.5, nor a fraction, such as 1/255"
        ) from None


def recipes() -> None:
    """List what `sluice train` can train: what each recipe shows, its data, what to expect on two cores."""
    table = Table("recipe", "shows", "data", "expect on two cores")
    for entry in PRESETS.values():
        table.add_row(entry.name, entry.shows, entry.data, entry.expect)
    with _user_errors():
        _console().print(table)


def evaluate(
    model: flags.Version,
    data: flags.Data = None,
    png: Annotated[Path | None, typer.Option(help="Draw the confusion matrix here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all the metrics as JSON.")] = False,
) -> None:
    """Evaluate a published version on held-out examples, run as it is served."""
    console = _console()
    with _user_errors():
        version_folder(model)
        _check_data(data)
        if png is not None:
            check_file("--png", png)
    with _user_errors(), _quiet_tensorflow():
        from training.curves import draw_confusion
        from training.published import examine

        metrics = examine(model, data).metrics
        if png is not None:
            if "confusion" not in metrics:
                raise BadInput("--png draws a confusion matrix, and this model has none")
            draw_confusion(png, str(model), metrics)
    if as_json:
        console.print_json(data=metrics)
        return
    if rows := metrics.get("per_class"):
        table = Table("class", "precision", "recall", "support")
        for row in rows:
            table.add_row(*(str(row[name]) for name in ("label", "precision", "recall", "support")))
        console.print(table)
    _print_metrics(console, metrics)


def compare(
    first: flags.Version,
    second: Annotated[Path, typer.Argument(help="The other one.")],
    data: flags.Data = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Compare two versions on the same held-out examples by McNemar's exact test."""
    console = _console()
    with _user_errors():
        version_folder(first)
        version_folder(second)
        _check_data(data)
    with _user_errors(), _quiet_tensorflow():
        from training.published import compare as compare_versions

        result = compare_versions(first, second, data)
    if as_json:
        console.print_json(data=result)
        return
    for path, accuracy, alone in zip(
        (first, second),
        result["accuracy"],
        (result["only_first_right"], result["only_second_right"]),
        strict=True,
    ):
        console.print(f"{path}: accuracy {accuracy:.4f}, alone right {alone} times")
    verdict = "they differ" if result["p_value"] < 0.05 else "no difference is shown"
    console.print(
        f"{result['examples']} examples, p = {result['p_value']:.4g}: {verdict} at the 5 % level",
    )


def inspect(model: flags.Version) -> None:
    """Show a published version: signatures, sizes, card."""
    with _user_errors():
        version_folder(model)
    with _user_errors(), _quiet_tensorflow():
        from training.inspection import show

        show(model, _console())


def _console() -> Console:
    """A console that prints what it is given: names of files and classes may have brackets and colons."""
    return Console(markup=False, emoji=False, highlight=False)


def _check_data(data: str | None) -> None:
    """Raises BadInput if what `--data` names does not exist."""
    from training import sources

    if data is not None and data not in TABLES:
        sources.parsed(data)


def _print_published(console: Console, folder: Path, out: Path) -> None:
    console.print(f"published {folder}", soft_wrap=True)
    console.print(f"next: sluice serve --models {out}", soft_wrap=True)


def _print_metrics(console: Console, metrics: dict[str, Any]) -> None:
    for name, value in metrics.get("variants", {}).items():
        console.print(f"  {name}: {value:.4f}")
    for name, value in metrics.items():
        if isinstance(value, float):
            console.print(f"{name.replace('held_out_', 'held-out ')} {value:.4f}")


@contextmanager
def _user_errors() -> Iterator[None]:
    """Errors as one line on stderr: exit 2 for what the user can correct in the command, 1 for the rest."""
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
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except MemoryError as error:
        print(f"error: there is no memory for it: {error}", file=sys.stderr)
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
    os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever the user has set for other programs
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

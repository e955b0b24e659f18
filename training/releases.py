"""A model and its card made into a version folder, wherever the model came from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.curves import draw_confusion, draw_curves
from training.errors import PublishFailed, TrainingError, told
from training.export import Exported, prove, write
from training.history import History
from training.publish import publish, versions
from training.recipes.base import Problem

GOLDEN_EXAMPLES = 16


@dataclass(frozen=True)
class Published:
    """Where a version went, its card, and what whoever published it should know."""

    folder: Path
    version: int
    card: dict[str, Any]
    notes: tuple[str, ...] = ()


def release(
    model_folder: Path, exported: Exported, card: dict[str, Any], history: History | None = None
) -> Published:
    """Writes, proves and publishes the next version of a model."""
    name = model_folder.name

    def write_version(folder: Path, version: int) -> None:
        card["version"] = version
        with _telling_what_was_raised(model_folder):
            write(exported, folder, name, card)
        extra = folder / "assets.extra"
        if history and history.epochs:
            draw_curves(extra / "curves.png", f"{name} {version}: {card['recipe']}", history.epochs)
        if "confusion" in card["metrics"]:
            draw_confusion(extra / "confusion.png", f"{name} {version}", card["metrics"])
        with _telling_what_was_raised(model_folder):
            prove(exported, folder)

    folder, version = publish(model_folder, write_version)
    return Published(folder, version, card)


@contextmanager
def _telling_what_was_raised(model_folder: Path) -> Iterator[None]:
    """Reports whatever a model, whose layers may be anybody's code, raises as it is written and checked."""
    try:
        yield
    except (TrainingError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno:  # of the disk, which `publish` reports
            raise
        raise PublishFailed(f"nothing was published in {model_folder}: {told(error)}") from error


def released_by(model_folder: Path, run: str) -> Published | None:
    """The version of a model that this run has published; None if it has not."""
    for version in reversed(versions(model_folder)):
        folder = model_folder / str(version)
        # somebody else's version may have no card, or one of its own kind
        with suppress(OSError, ValueError, LookupError, TypeError):
            card = json.loads((folder / "assets.extra" / "card.json").read_text())
            if card["training"]["run"] == run:
                return Published(folder, version, card)
    return None


def golden_inputs(problem: Problem) -> Mapping[str, NDArray[Any]]:
    """Held-out examples to bake into the graph, of as many classes as there is room for."""
    test = problem.test
    classes = test.targets.get("scores") if problem.labels else None
    if classes is None:
        return {name: array[:GOLDEN_EXAMPLES] for name, array in test.inputs.items()}
    firsts = [int(np.flatnonzero(classes == value)[0]) for value in np.unique(classes)]
    rest = [index for index in range(min(len(test), 10 * GOLDEN_EXAMPLES)) if index not in firsts]
    chosen = np.array((firsts + rest)[:GOLDEN_EXAMPLES])
    return {name: array[chosen] for name, array in test.inputs.items()}

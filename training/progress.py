"""Progress of training: a bar in a terminal, one line per epoch in a log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Report = Callable[[int, dict[str, float]], None]


@contextmanager
def reporting(console: Console, title: str, epochs: int) -> Iterator[Report]:
    """A function to call after each epoch with its number and metrics."""
    if not console.is_terminal:

        def line(epoch: int, metrics: dict[str, float]) -> None:
            console.print(
                f"{title} epoch {epoch + 1}/{epochs} {_summary(metrics)}", highlight=False, soft_wrap=True
            )

        yield line
        return
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[summary]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=epochs, summary="")

        def advance(epoch: int, metrics: dict[str, float]) -> None:
            progress.update(task, completed=epoch + 1, summary=_summary(metrics))

        yield advance


def _summary(metrics: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name != "learning_rate")

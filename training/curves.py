"""Training curves and confusion matrix drawn as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

mpl.rcParams["figure.dpi"] = 100
mpl.rcParams["text.parse_math"] = False  # a label may have dollar signs of its own


def draw_curves(path: Path, title: str, epochs: list[dict[str, float]]) -> None:
    """Each metric over the epochs, training beside validation, into a PNG."""
    names = [name for name in epochs[0] if f"val_{name}" in epochs[0]]
    figure = Figure(figsize=(5 * len(names), 4), layout="constrained")
    figure.suptitle(title)
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(names))), names, strict=True):
        numbers = range(1, len(epochs) + 1)
        axes.plot(numbers, [epoch[name] for epoch in epochs], label="training")
        axes.plot(numbers, [epoch[f"val_{name}"] for epoch in epochs], label="validation")
        axes.set(xlabel="epoch", ylabel=name)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, format="png")


def draw_confusion(path: Path, title: str, metrics: dict[str, Any]) -> None:
    """The confusion matrix, true classes in rows, into a PNG; `metrics` as `evaluation` gives them."""
    matrix = np.array(metrics["confusion"])
    labels = [row["label"] for row in metrics["per_class"]]
    side = max(4.0, 0.5 * len(labels))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(
        title=title, xlabel="predicted", ylabel="true", xticks=range(len(labels)), yticks=range(len(labels))
    )
    axes.set_xticklabels(labels, rotation=90 if max(map(len, labels)) > 2 else 0)
    axes.set_yticklabels(labels)
    for row, column in zip(*np.nonzero(matrix), strict=True):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour, fontsize=8)
    figure.savefig(path, format="png")

"""What is in a version folder: signatures, sizes and card, shown with rich."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError
from rich.console import Console
from rich.table import Table
from tensorflow.core.protobuf import saved_model_pb2

from training.errors import BadInput
from training.publish import version_folder
from training.published import read_card


def show(path: Path, console: Console) -> None:
    """Prints what a version folder, or a model's newest version, holds; the console must take no markup."""
    folder = version_folder(path)
    try:
        model = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
        definitions = model.meta_graphs[0].signature_def
    except (DecodeError, IndexError) as error:
        raise BadInput(f"{folder}/saved_model.pb is not a SavedModel") from error
    card = read_card(folder)
    console.print(str(folder), style="bold", soft_wrap=True)
    console.print(_signatures(definitions))
    console.print(_sizes(folder))
    if card is None:
        console.print("no card: the model was published by something else")
    else:
        console.print(_card(card))


def _signatures(definitions: Any) -> Table:
    table = Table("signature", "in", "out", title="signatures")
    for name in sorted(definitions):
        if not name.startswith("__"):
            table.add_row(name, _tensors(definitions[name].inputs), _tensors(definitions[name].outputs))
    return table


def _tensors(infos: Any) -> str:
    lines = []
    for name in sorted(infos):
        sides = ["N" if dim.size < 0 else str(dim.size) for dim in infos[name].tensor_shape.dim]
        lines.append(f"{name} {tf.dtypes.as_dtype(infos[name].dtype).name} [{', '.join(sides)}]")
    return "\n".join(lines)


def _sizes(folder: Path) -> Table:
    table = Table("file", "bytes", title="sizes")
    table.columns[1].justify = "right"
    files = sorted(entry for entry in folder.rglob("*") if entry.is_file())
    for file in files:
        table.add_row(str(file.relative_to(folder)), f"{file.stat().st_size:,}")
    table.add_row("all", f"{sum(file.stat().st_size for file in files):,}", style="bold")
    return table


def _card(card: dict[str, Any]) -> Table:
    table = Table("card", "", show_header=False, title="card")
    for name, value in card.items():
        lines = [f"{key}: {_short(entry)}" for key, entry in value.items()] if isinstance(value, dict) else []
        table.add_row(name, "\n".join(lines) or _short(value))
    return table


def _short(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], (list, dict)):
        return f"({len(value)} rows)"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 400 else text[:400] + " ..."

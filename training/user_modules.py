"""Modules of the user's own, whose classes register themselves as they are imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path

from training.errors import BadInput, told


def import_all(names: Iterable[str]) -> None:
    """Imports modules by name, from the working directory first, as `python -m` does.

    Raises:
        BadInput: there is no such module, or importing it fails.
    """
    for name in names:
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.insert(0, here)
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            raise BadInput(f"--import {name}: {_reason(name, error)}") from error


def _reason(name: str, error: BaseException) -> str:
    if name.endswith(".py") or "/" in name:
        return "it takes a module's name, such as my_layers for my_layers.py, and not a path"
    if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
        return f"there is no module {error.name}, neither in the working directory nor on PYTHONPATH"
    return f"importing it failed: {told(error)}"

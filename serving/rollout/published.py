"""Which versions of a model are published, that is, can be loaded."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from serving.errors import InvalidInput
from serving.prediction import version_number


def published_in(models_dir: Path, model: str) -> list[int]:
    """A model's versions in a folder of models, sorted; empty if the folder is not to be seen here."""
    folder = models_dir / model
    if not folder.is_dir():
        return []
    found = []
    for child in folder.iterdir():
        with suppress(InvalidInput):  # a folder with any other name is not a version's
            version = version_number(child.name)
            found += [version] if child.is_dir() else []
    return sorted(found)

"""Which versions of a model are published, that is, can be loaded."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from serving.errors import InvalidInput
from serving.prediction import version_number

Published = Callable[[str], list[int]]
"""The published versions of a model, as far as can be seen; empty if that cannot be seen."""


def published_in(models_dir: Path) -> Published:
    """Looks up published versions in a folder of models."""

    def versions(model: str) -> list[int]:
        folder = models_dir / model
        if not folder.is_dir():
            return []
        found = []
        for child in folder.iterdir():
            with suppress(InvalidInput):  # a folder with any other name is not a version's
                version = version_number(child.name)
                found += [version] if child.is_dir() else []
        return sorted(found)

    return versions

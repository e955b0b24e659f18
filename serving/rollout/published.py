"""The versions of models that are there to be loaded."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from serving.errors import InvalidInput
from serving.prediction import version_number

Published = Callable[[str], list[int]]
"""The versions of a model that are there to be loaded, as far as can be seen; empty if it cannot be seen."""


def published_in(models_dir: Path) -> Published:
    """The versions in a folder of models."""

    def versions(model: str) -> list[int]:
        folder = models_dir / model
        if not folder.is_dir():
            return []
        found = []
        for child in folder.iterdir():
            with suppress(InvalidInput):  # a folder that is called otherwise is none of a version
                version = version_number(child.name)
                found += [version] if child.is_dir() else []
        return sorted(found)

    return versions

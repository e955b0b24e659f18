"""Which versions of a model should serve, by its folder's content and its version policy."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from serving.modelserver.config import ModelEntry

logger = logging.getLogger(__name__)

MAX_VERSION = 2**63 - 1


def look(model: ModelEntry) -> dict[int, Path] | None:
    """The wanted versions of `model` and their folders; None if its base path is not there (yet).

    None means that nothing is known, so what serves goes on serving; an empty answer means that the
    folder holds no version, so nothing is wanted.
    """
    try:
        children = [child.name for child in model.base_path.iterdir()]
    except OSError as error:
        logger.warning(
            "FileSystemStoragePathSource encountered a filesystem access error: Could not find base path "
            "%s for servable %s with error %s",
            model.base_path,
            model.name,
            error.strerror,
        )
        return None
    folders = by_version(children)
    wanted = choose(model.policy, folders)
    if not wanted:
        logger.warning(
            "No versions of servable %s found under base path %s. Did you forget to name your leaf "
            "directory as a number (eg. '/1/')?",
            model.name,
            model.base_path,
        )
    return {version: model.base_path / folders[version] for version in wanted}


def by_version(children: Iterable[str]) -> dict[int, str]:
    """Version -> folder name. `abc` is not a version; of `1` and `0001` the last in order counts."""
    return {
        int(child): child
        for child in sorted(children)
        if re.fullmatch(r"[0-9]+", child) and int(child) <= MAX_VERSION
    }


def choose(policy: Any, folders: Mapping[int, str]) -> list[int]:
    """The versions that a `ServableVersionPolicy` message picks from those present, highest first."""
    versions = sorted(folders, reverse=True)
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return versions
    if choice == "specific":
        specific = set(policy.specific.versions)
        for version in sorted(specific - folders.keys()):
            logger.warning("Version %d, which the version policy asks for, was not found", version)
        return [version for version in versions if version in specific]
    return versions[: max(policy.latest.num_versions, 1)]

"""Which version to load or unload next: a pure decision.

The rule is the original's availability-preserving policy: a version that is no longer wanted is kept
until a wanted one is available, and the highest wanted version loads first.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from serving.modelserver.status import StatusError


class State(enum.IntEnum):
    """`ModelVersionStatus.State`: the life of one version, in order."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True)
class VersionState:
    """Where one version is in its life, and the error that ended it, if one did."""

    state: State
    error: StatusError | None = None


@dataclass(frozen=True)
class Load:
    """Load `version` from `path`."""

    version: int
    path: Path


@dataclass(frozen=True)
class Unload:
    """Unload `version`."""

    version: int


Action = Load | Unload


def decide(
    wanted: Mapping[int, Path], known: Mapping[int, VersionState], failed: Set[int] = frozenset()
) -> list[Action]:
    """What to do now about one model.

    Args:
        wanted: the versions that should serve, and where each one is.
        known: every version that was ever seen, and where it is in its life.
        failed: versions that are still wanted but failed for good; they are left alone.

    Returns:
        Actions that may start at once, all of them; call again when one has finished.
    """
    available = {version for version, at in known.items() if at.state is State.AVAILABLE}
    unloads = sorted(available - wanted.keys())
    if wanted and not available & wanted.keys():
        unloads = unloads[:-1]  # one of them goes on serving until a wanted one is there
    loads = [
        version
        for version in sorted(wanted, reverse=True)
        if version not in failed and (version not in known or known[version].state is State.END)
    ]
    return [Unload(version) for version in unloads] + [Load(version, wanted[version]) for version in loads]

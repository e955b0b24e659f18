"""Versions for a manager to bring in: their folders, their states, and a servable that is nothing."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from serving.modelserver.lifecycle import State, VersionState
from serving.modelserver.signature import Signature

PATHS = {version: Path(f"/m/{version}") for version in range(1, 6)}
NEW, LOADING, AVAILABLE, UNLOADING, END = (
    VersionState(state) for state in (State.START, State.LOADING, State.AVAILABLE, State.UNLOADING, State.END)
)


def wanted(*versions: int) -> dict[int, Path]:
    return {version: PATHS[version] for version in versions}


class Fake:
    """A servable that is nothing, and knows whether it was let go."""

    def __init__(self) -> None:
        self.signatures: dict[str, Signature] = {}
        self.is_closed = threading.Event()

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        raise NotImplementedError

    def close(self) -> None:
        self.is_closed.set()

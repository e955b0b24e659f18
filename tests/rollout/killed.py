"""`sluice`, killed by SIGKILL as it saves one move of a rollout: `python -m tests.rollout.killed POINT …`.

POINT is `during:PHASE.STEP` (the new state is written beside the old one, but not renamed over it) or
`after:PHASE.STEP` (it is saved, but not acted on).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from serving.cli import main
from serving.rollout import assembly
from serving.rollout.machine import moved
from serving.rollout.record import Rollout
from serving.rollout.store import Files, FileStore


class KillingFiles(Files):
    """Ends the process before the newest state is renamed into place, when told to."""

    fatal = False

    def replace(self, source: Path, target: Path) -> None:
        if self.fatal and not target.stem.endswith(".previous"):
            os.kill(os.getpid(), signal.SIGKILL)
        super().replace(source, target)


class KillingStore(FileStore):
    """A store whose process ends in the midst of a save, or right after it."""

    point = ""

    def __init__(self, folder: Path) -> None:
        self._killing = KillingFiles()
        super().__init__(folder, self._killing)

    def save(self, rollout: Rollout) -> Rollout:
        stored = self.load(rollout.model)
        entered = ""
        if stored is not None and moved(stored.state, rollout.state):
            entered = f"{rollout.state.phase.value}.{rollout.state.step}"
        self._killing.fatal = self.point == f"during:{entered}"
        saved = super().save(rollout)
        if self.point == f"after:{entered}":
            os.kill(os.getpid(), signal.SIGKILL)
        return saved


if __name__ == "__main__":
    KillingStore.point = sys.argv.pop(1)
    # What a gateway process keeps rollouts in.
    setattr(assembly, "FileStore", KillingStore)  # noqa: B010 - not a name that others may rely on
    main()

"""The ResNet on the handwritten digits, trained once for all the processes of a test run."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path


def trained_digits(shared: Path) -> Path:
    """A folder of models with `digits/1`, as `sluice train resnet --data digits` publishes it. Read only.

    Whichever process asks first trains it; the others wait for that. `SLUICE_TEST_MODELS` names a folder that
    exists already.

    Args:
        shared: a folder that all the processes of the run share.
    """
    if "SLUICE_TEST_MODELS" in os.environ:
        return Path(os.environ["SLUICE_TEST_MODELS"])
    models = shared / "digits-models"
    with (shared / "digits-models.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (models / "digits" / "1").exists():
            command = [
                sys.executable,
                "-m",
                "serving.cli",
                "train",
                "resnet",
                "--data=digits",
                f"--out={models}",
            ]
            subprocess.run(command, check=True, capture_output=True, text=True)
    return models

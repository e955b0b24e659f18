"""Fixtures that the whole suite shares: above all one trained model, made once for all workers."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of large test data: `SLUICE_TEST_DATA`, by default beside the repository."""
    return Path(os.environ.get("SLUICE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def digits_models(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder of models with `digits/1`, as `sluice train resnet --data digits` publishes it. Read only.

    Trained once, whatever the number of workers. `SLUICE_TEST_MODELS` names one that exists already.
    """
    if "SLUICE_TEST_MODELS" in os.environ:
        return Path(os.environ["SLUICE_TEST_MODELS"])
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
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

"""Fixtures that the whole suite shares: above all one trained model, made once for all workers."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

REPOSITORY = Path(__file__).parent.parent
# What trains models for all tests of a run, and how long a test may take that comes to it first.
TRAINING = {"digits_models", "published"}
TRAINING_TIMEOUT_S = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give those who may have to wait for a training more time than others."""
    for item in items:
        if TRAINING & set(getattr(item, "fixturenames", ())) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TRAINING_TIMEOUT_S))


# Tests that stay in one process, by where they are: over the live scene, which takes a machine by itself, and
# over a model of every recipe, for whose training a second process would wait.
TOGETHER = ("tests/observability/", "tests/training/test_recipes_served.py")


class Spread(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Spreads tests over processes, but for those that are better off together.

    In place of xdist's marks of groups, which pytest 9.2 leaves without effect
    (https://github.com/pytest-dev/pytest-xdist/issues/1386).
    """

    def _split_scope(self, nodeid: str) -> str:
        return next((place for place in TOGETHER if nodeid.startswith(place)), nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Spread:
    """How the tests of a run with several processes are spread over them."""
    return Spread(config, log)


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

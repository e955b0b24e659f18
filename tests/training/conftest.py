"""Models trained once for all the test processes of a run, and the data that may be at hand."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

from tests.training.recipes import train_once

Published = Callable[[str], Path]


@pytest.fixture(scope="session")
def shared_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models that all processes of this test run share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "models"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def published(shared_models: Path) -> Published:
    """Version 1 of a recipe's model, trained by whichever process asks first."""

    def publish(recipe: str) -> Path:
        with (shared_models.parent / f"{recipe}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (shared_models / recipe / "1").exists():
                train_once(recipe, shared_models)
        return shared_models / recipe / "1"

    return publish


@pytest.fixture(scope="session")
def digits(published: Published) -> Path:
    """The ResNet on digits, trained as `sluice train resnet` trains it."""
    return published("resnet")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of larger data sets; skips where it is missing."""
    folder = Path(os.environ.get("SLUICE_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no SLUICE_TEST_DATA")
    return folder

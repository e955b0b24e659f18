"""Models trained once for all the test processes of a run, and the data that may be at hand."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

from tests.support.digits import trained_digits
from tests.training.recipes import train_once

Published = Callable[[str], Path]


@pytest.fixture(scope="session")
def published(shared_folder: Path) -> Published:
    """Version 1 of a recipe's model, trained by whichever process asks first."""

    def publish(recipe: str) -> Path:
        if recipe == "resnet":  # as the user gets it: that which the rest of the suite serves
            return trained_digits(shared_folder) / "digits" / "1"
        models = shared_folder / "models"
        models.mkdir(exist_ok=True)
        with (shared_folder / f"{recipe}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (models / recipe / "1").exists():
                train_once(recipe, models)
        return models / recipe / "1"

    return publish


@pytest.fixture(scope="session")
def digits(digits_models: Path) -> Path:
    """The ResNet on digits, trained as `sluice train resnet` trains it."""
    return digits_models / "digits" / "1"


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of larger data sets; skips where it is missing."""
    folder = Path(os.environ.get("SLUICE_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no SLUICE_TEST_DATA")
    return folder

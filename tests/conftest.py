"""Fixtures that the whole suite shares: above all one trained model, made once for all workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.support.digits import trained_digits

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
def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all processes of this test run share."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session")
def digits_models(shared_folder: Path) -> Path:
    """A folder of models with `digits/1`, as `sluice train resnet --data digits` publishes it. Read only."""
    return trained_digits(shared_folder)

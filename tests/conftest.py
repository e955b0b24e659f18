"""Fixtures that the whole suite shares: above all one trained model, made once for all workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from serving import grpc_environment
from tests.support.digits import trained_digits

grpc_environment.prepare()  # gateways in the tests' own processes are to be as those of users

# How long an example takes is the machine's business, which others may keep busy.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

REPOSITORY = Path(__file__).parent.parent
# What trains models for all tests of a run, and how long a test may take that comes to it first.
TRAINING = {"digits_models", "published"}
TRAINING_TIMEOUT_S = 900


# Tests that stay in one process, one after the other, by where they are; they come first, in this order.
TOGETHER: dict[str, tuple[str, ...]] = {
    # for whose training a second process would wait
    "a model of every recipe": ("tests/training/test_recipes_served.py",),
    # which takes a machine by itself, and goes on for as long as it is there
    "the live scene": ("tests/observability/",),
    "the zoo of models and its servers": ("tests/modelserver/",),
    "a live `sluice serve`": (
        "tests/doors/test_classify_command.py",
        "tests/doors/test_client",
        "tests/doors/test_mutations.py",
        "tests/doors/test_openapi.py",
    ),
}


def together(nodeid: str) -> str | None:
    """The group of a test; None of one that may run anywhere."""
    return next((group for group, places in TOGETHER.items() if nodeid.startswith(places)), None)


def _turn(item: pytest.Item) -> int:
    group = together(item.nodeid)
    return len(TOGETHER) if group is None else list(TOGETHER).index(group)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests, and give those who may have to wait for a training more time than others."""
    items.sort(key=_turn)
    for item in items:
        if TRAINING & set(getattr(item, "fixturenames", ())) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TRAINING_TIMEOUT_S))


class Spread(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Spreads tests over processes in their order, but for those that are better off together.

    In place of xdist's marks of groups, which pytest 9.2 leaves without effect
    (https://github.com/pytest-dev/pytest-xdist/issues/1386).
    """

    def __init__(self, config: pytest.Config, log: Any) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False  # not the largest groups first

    def _split_scope(self, nodeid: str) -> str:
        return together(nodeid) or nodeid


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

"""One live scene under load for all the tests here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.observability import scene as scenes
from tests.observability.scene import Scene

LOAD_S = 12.0


@pytest.fixture(scope="package")
def scene(digits_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The scene after its load; tests may move its rollout, and read what Prometheus saw before."""
    if not scenes.have_prometheus():
        pytest.skip("prometheus is not installed: make test-deps")
    with scenes.running(digits_models, tmp_path_factory.mktemp("scene"), LOAD_S) as made:
        yield made

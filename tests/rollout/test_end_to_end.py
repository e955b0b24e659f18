"""Rollouts of a real model in real processes: `sluice serve`, its model server, the handwritten digits."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from serving.rollout.explain import explain, replay
from serving.rollout.machine import Phase
from serving.rollout.plan import Plan
from serving.rollout.record import Rollout
from serving.rollout.start import start
from serving.rollout.store import FileStore
from tests.rollout.broken import HARMS
from tests.support.beside import beside
from tests.support.processes import LiveProcess, started

pytestmark = pytest.mark.timeout(600)  # whole rollouts by real processes, beside other tests

PLAN: dict[str, Any] = {
    "shadow": {"share": 0.5, "min_samples": 100, "min_time_s": 1.0},
    "canary": [
        {"weight": 0.1, "min_time_s": 1.0, "min_requests": 20},
        {"weight": 0.5, "min_time_s": 1.0, "min_requests": 20},
    ],
    "criteria": {
        "errors": {"acceptable_rate": 0.02, "margin": 1.0},
        "latency": {"margin": 2.0},
        "accuracy": None,
    },
    "limits": {"drain_s": 1.0},
}
# A copy is no measure of latency, and a copy that fails is soon found: to try callers, no copies are made.
CANARY_ONLY = PLAN | {"shadow": {"share": 0.0}}


def pictures() -> list[bytes]:
    found = []
    for pixels in load_digits().images[:400]:
        buffer = io.BytesIO()
        Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


@asynccontextmanager
async def asked(live: LiveProcess, callers: int = 3) -> AsyncIterator[list[tuple[int, int]]]:
    """Callers that ask one image after the other; the status and the version of each answer, as they come."""
    images, answered = pictures(), list[tuple[int, int]]()

    async def caller(client: httpx.AsyncClient, turn: int) -> None:
        while True:
            turn = (turn + callers) % len(images)
            answer = await client.post(
                "/v1/models/digits:classify", content=images[turn], headers={"content-type": "image/png"}
            )
            answered.append((answer.status_code, answer.json().get("version", 0)))

    async with (
        httpx.AsyncClient(base_url=live.http_url, timeout=60) as client,
        beside(*(caller(client, number) for number in range(callers))),
    ):
        yield answered


async def ended(store: FileStore, to: int, plan: dict[str, Any], timeout_s: float = 150.0) -> Rollout:
    start(store, "digits", to, Plan.model_validate(plan), time.time())
    async with asyncio.timeout(timeout_s):
        while True:
            found = store.load("digits")
            assert found is not None
            if found.finished:
                return found
            await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def models(digits_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1, a good version 2, and a broken version for each harm from 3 on."""
    digits = digits_models / "digits" / "1"
    folder = tmp_path_factory.mktemp("models") / "digits"
    shutil.copytree(digits, folder / "1")
    shutil.copytree(digits, folder / "2")
    command = [sys.executable, "-m", "tests.rollout.broken", str(digits), str(folder), "3"]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run(command, check=True, env=environment, capture_output=True)
    return folder.parent


async def test_a_good_version_comes_in_and_broken_ones_do_not(models: Path, tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    environment = {
        "SLUICE_ROLLOUT_STORE": str(tmp_path),
        "SLUICE_ROLLOUT_INTERVAL_S": "0.2",
        "SLUICE_STATUS_INTERVAL_S": "0.2",
    }
    # The newest would be pinned at first sight; the service has been on version 1.
    store.pin("digits", 1)
    expected = {
        "permuted": (PLAN, {"agreement.below", "agreement.class-below"}),
        "noised": (PLAN, {"agreement.below", "agreement.class-below"}),
        "slow": (CANARY_ONLY, {"latency.worse"}),
        "raises": (CANARY_ONLY, {"errors.worse"}),
    }
    async with started(["serve", "--models", str(models)], environment) as live, asked(live) as answered:
        while len(answered) < 100:
            await asyncio.sleep(0.05)
        rollout = await ended(store, 2, PLAN)
        assert rollout.state.phase is Phase.PROMOTED, rollout.state.reason
        assert {status for status, _ in answered} == {200}
        for version, harm in enumerate(HARMS, start=3):
            plan, codes = expected[harm]
            rollout = await ended(store, version, plan)
            print("\n".join(explain(rollout)))
            assert rollout.state.phase is Phase.ROLLED_BACK
            assert rollout.state.reason.code in codes, rollout.state.reason
            assert all(each.same for each in replay(rollout))
            after = len(answered)
            while len(answered) < after + 50:
                await asyncio.sleep(0.02)
            assert {each for _, each in answered[after + 3 :]} == {2}, "no answer by it after the rollback"

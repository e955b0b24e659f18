"""SIGKILL of the controller at every state: in the midst of the save that enters it, and right after."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import httpx

from serving.rollout.explain import replay
from serving.rollout.machine import Phase
from serving.rollout.plan import Plan
from serving.rollout.record import Rollout, to_json
from serving.rollout.start import order, start
from serving.rollout.store import FileStore
from tests.rollout.replicas import FAST, PICTURES, VersionedReplica
from tests.support.beside import beside
from tests.support.fake_replica import Refusal, running, until
from tests.support.processes import started

WAY = ["loading.0", "preflight.0", "shadow.0", "canary.0", "canary.1", "promoting.1", "promoted.1"]
START_AND_REACH_S = 60.0


@dataclass
class Crashes:
    """One rollout whose gateway process is killed again and again, and started again each time.

    Attributes:
        url: Where the present gateway is, for the callers.
    """

    folder: Path
    replica: VersionedReplica
    url: str = "http://127.0.0.1:9"

    @property
    def store(self) -> FileStore:
        return FileStore(self.folder)

    @property
    def rollout(self) -> Rollout:
        found = self.store.load("digits")
        assert found is not None
        return found

    @property
    def arguments(self) -> list[str]:
        return ["gateway", f"--replica={self.replica.address}", "--model=digits"]

    @property
    def environment(self) -> dict[str, str]:
        return {
            "SLUICE_ROLLOUT_STORE": str(self.folder),
            "SLUICE_ROLLOUT_INTERVAL_S": "0.05",
            "SLUICE_STATUS_INTERVAL_S": "0.05",
        }

    async def killed_at(self, point: str) -> None:
        """Runs a gateway until it kills itself at this point."""
        command = [sys.executable, "-m", "tests.rollout.killed", point, *self.arguments]
        process = await asyncio.create_subprocess_exec(
            *command,
            "--http-port=0",
            "--grpc-port=0",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=os.environ | self.environment,
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(START_AND_REACH_S):
                async for line in process.stdout:
                    if found := re.match(rb"HTTP\s+(http://\S+)", line):
                        self.url = found[1].decode()
                assert await process.wait() == -signal.SIGKILL
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def killed_at_each(self, states: Iterable[str]) -> None:
        """Killed as it enters each of these states, before it is saved and after; what is stored says so."""
        for state in states:
            await self.killed_at(f"during:{state}")
            assert self.store.damage("digits") is None
            assert state not in way(self.rollout), "the old state, whole"
            await self.killed_at(f"after:{state}")
            assert way(self.rollout)[-1] == here(self.rollout) == state, "the new state, whole"

    async def ask_for_ever(self, number: int) -> None:
        """A caller of whichever gateway is up; there may be none."""
        async with httpx.AsyncClient(timeout=10, headers={"content-type": "image/png"}) as client:
            while True:
                number += 4
                try:
                    url = f"{self.url}/v1/models/digits:classify"
                    await client.post(url, content=PICTURES[number % len(PICTURES)])
                except httpx.TransportError:
                    await asyncio.sleep(0.05)


@asynccontextmanager
async def crashes(folder: Path, plan: dict[str, Any], **replica: Any) -> AsyncIterator[Crashes]:
    """A rollout of "digits" from 1 to 2 that waits for a gateway, and callers."""
    async with running(VersionedReplica(**replica)) as up:
        assert isinstance(up, VersionedReplica)
        found = Crashes(folder, up)
        found.store.pin("digits", 1)
        start(found.store, "digits", 2, Plan.model_validate(plan), 1e9)
        async with beside(*(found.ask_for_ever(number) for number in range(4))):
            yield found


def here(rollout: Rollout) -> str:
    return f"{rollout.state.phase.value}.{rollout.state.step}"


def way(rollout: Rollout) -> list[str]:
    return [f"{event.after.phase.value}.{event.after.step}" for event in rollout.events]


async def test_a_controller_killed_at_each_state_promotes_as_it_would_have(tmp_path: Path) -> None:
    async with crashes(tmp_path, FAST) as scene:
        await scene.killed_at_each(WAY)
        found = scene.rollout
        assert (found.state.phase, way(found)) == (Phase.PROMOTED, WAY)
        assert all(each.same for each in replay(found))
        async with started(scene.arguments, scene.environment) as gateway:
            await until(lambda: scene.replica.labels == {"stable": 2})
            async with httpx.AsyncClient(base_url=gateway.http_url) as client:
                answer = await client.post(
                    "/v1/models/digits:classify", content=PICTURES[0], headers={"content-type": "image/png"}
                )
            assert answer.json()["version"] == 2
        assert scene.replica.configs[-1] == [2]
        await until(lambda: scene.rollout.told == len(WAY))
        told = replace(found, told=len(WAY), revision=scene.rollout.revision)
        assert to_json(scene.rollout) == to_json(told), "nothing is decided twice"


async def failing() -> None:
    raise Refusal(grpc.StatusCode.INTERNAL, "the model failed")


async def test_a_controller_killed_at_each_state_rolls_back_as_it_would_have(tmp_path: Path) -> None:
    async with crashes(tmp_path, FAST, behaviour={2: failing}) as scene:
        await scene.killed_at_each(["rolling_back.0", "rolled_back.0"])
        found = scene.rollout
        assert (found.state.phase, found.state.reason.code) == (Phase.ROLLED_BACK, "errors.worse")
        assert all(each.same for each in replay(found))
        async with started(scene.arguments, scene.environment):
            await until(lambda: scene.replica.labels == {"stable": 1})
        assert scene.replica.configs[-1] == [1]


async def test_a_controller_killed_while_it_pauses_is_paused_and_obeys(tmp_path: Path) -> None:
    plan = FAST | {
        "shadow": FAST["shadow"] | {"min_samples": 10**6},
        "limits": FAST["limits"] | {"shadow_s": 0.2},
    }
    async with crashes(tmp_path, plan) as scene:
        await scene.killed_at_each(["paused.0"])
        assert scene.rollout.state.reason.code == "shadow.inconclusive"
        order(scene.store, "digits", "promote", by="a test", at=2e9)
        await scene.killed_at_each(["promoted.0"])
        assert [each.outcome for each in scene.rollout.events][-2:] == ["command", "passed"]

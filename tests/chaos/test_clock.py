"""A clock on the wall that is set forth and back, by hours and by years, while the gateway serves."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import httpx

from serving.rollout.machine import Phase
from serving.rollout.plan import Plan
from serving.rollout.record import Rollout
from serving.rollout.start import order, start
from serving.rollout.store import FileStore
from tests.chaos.test_fairness import write_keys
from tests.rollout.replicas import FAST, PICTURES, VersionedReplica
from tests.support.beside import beside
from tests.support.fake_replica import running, until
from tests.support.processes import LiveProcess, started
from tests.support.stepped_clock import SteppedClock

HOUR, YEARS = 3600, 10 * 365 * 86400
PATH = "/v1/models/digits:classify"
# Longer than anybody watches in this test: the canary goes on by hand only.
PLAN = Plan.model_validate(FAST | {"canary": [{"weight": 0.5, "min_time_s": 600, "min_requests": 10}]})


@dataclasses.dataclass
class Watched:
    """A gateway whose clock can be set, its rollout, and what callers saw of it."""

    live: LiveProcess
    client: httpx.AsyncClient
    store: FileStore
    seen: Counter[int]
    slowest_s: float = 0.0

    @property
    def rollout(self) -> Rollout:
        found = self.store.load("digits")
        assert found is not None
        return found

    async def until_more(self, count: int) -> None:
        """Wait for so many further answers."""
        goal = self.seen.total() + count
        await until(lambda: self.seen.total() >= goal)

    async def ask(self, key: str, index: int = 7) -> httpx.Response:
        """Have one picture classified."""
        headers = {"content-type": "image/png", "x-api-key": key}
        return await self.client.post(PATH, content=PICTURES[index], headers=headers)

    async def ask_for_ever(self, key: str) -> None:
        """Ask without end."""
        while True:
            started_at = time.monotonic()
            self.seen[(await self.ask(key)).status_code] += 1
            self.slowest_s = max(self.slowest_s, time.monotonic() - started_at)
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def watched(folder: Path, clock: SteppedClock, key: str) -> AsyncIterator[Watched]:
    """A gateway process with a rollout in its canary, two replicas that follow it, and callers who ask."""
    async with running(VersionedReplica()) as one, running(VersionedReplica()) as other:
        settings = {
            "SLUICE_KEYS_FILE": str(folder / "keys.toml"),
            "SLUICE_ROLLOUT_STORE": str(folder / "rollouts"),
            "SLUICE_ROLLOUT_INTERVAL_S": "0.1",
            "SLUICE_STATUS_INTERVAL_S": "0.2",
            "SLUICE_ACCESS_LOG_SHARE": "1",
        }
        replicas = [f"--replica={each.address}" for each in (one, other)]
        async with (
            started(["gateway", *replicas, "--model=digits"], clock.environment | settings) as live,
            httpx.AsyncClient(base_url=live.http_url, timeout=60) as client,
        ):
            scene = Watched(live, client, FileStore(folder / "rollouts"), Counter())
            async with beside(*(scene.ask_for_ever(key) for _ in range(3))):
                await until(lambda: scene.store.pinned("digits") is not None)
                await asyncio.to_thread(start, scene.store, "digits", 2, PLAN, 1e9)
                await until(lambda: scene.rollout.state.phase is Phase.CANARY, timeout_s=60)
                yield scene


async def assert_served_as_ever(scene: Watched, few: str, many: str) -> None:
    """Answers come, rates hold and end, feedback counts once, the rollout is as old as it was watched."""
    before, started_at = scene.rollout, time.monotonic()
    await scene.until_more(30)
    await until(lambda: scene.rollout.revision >= before.revision + 3)
    waits = []
    while (answer := await scene.ask(few)).status_code == 200:
        pass
    while answer.status_code == 429:
        waits.append(int(answer.headers["retry-after"]))
        await asyncio.sleep(0.05)
        answer = await scene.ask(few)
    assert answer.status_code == 200
    assert max(waits) <= 2, "a second's rate is over after a second or two"
    prediction_id = (await scene.ask(many)).json()["results"][0]["prediction_id"]
    for status in ("accepted", "duplicate"):
        feedback = await scene.client.post(
            "/v1/feedback",
            json={"prediction_id": prediction_id, "label": "class-7"},
            headers={"x-api-key": many},
        )
        assert feedback.json()["status"] == status, feedback.text
    after = scene.rollout
    assert after.state.phase is Phase.CANARY, after.state.reason
    assert 0.0 < after.clock_s - before.clock_s <= time.monotonic() - started_at + 0.5


async def test_a_clock_that_is_set_changes_nothing_for_callers_and_rollouts(tmp_path: Path) -> None:
    clock = SteppedClock(tmp_path)
    steady, few, many, spent = write_keys(tmp_path / "keys.toml", "steady", "few", "many", "spent")
    text = (tmp_path / "keys.toml").read_text()
    for name, rate in (("few", "3/second"), ("spent", "2/year")):
        text = text.replace(f'name = "{name}"', f'name = "{name}"\nrate = "{rate}"')
    (tmp_path / "keys.toml").write_text(text)
    async with watched(tmp_path, clock, steady) as scene:
        assert [(await scene.ask(spent)).status_code for _ in range(3)] == [200, 200, 429]
        for step in (HOUR, -HOUR, YEARS, -YEARS, 0):
            clock.step(step)
            said = len(scene.live.errors)
            await assert_served_as_ever(scene, few, many)
            assert (await scene.ask(spent)).status_code == 429, "a clock that is set is no new allowance"
            await until(lambda said=said: len(scene.live.errors) > said)  # type: ignore[misc]
            line = json.loads(scene.live.errors[-1])
            logged = datetime.fromisoformat(line["timestamp"]).timestamp()
            assert abs(logged - (datetime.now(UTC).timestamp() + step)) < HOUR / 2, "its clock was set"
        await asyncio.to_thread(order, scene.store, "digits", "promote", by="a test", at=time.time())
        await until(lambda: scene.rollout.state.phase is Phase.PROMOTED, timeout_s=60)
        assert [event.after.phase for event in scene.rollout.events][-1] is Phase.PROMOTED
    assert set(scene.seen) == {200}, scene.seen
    assert scene.slowest_s < 10.0, "its deadline, whatever the clock said"

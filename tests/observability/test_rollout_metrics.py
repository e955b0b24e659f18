"""What a gateway's metrics tell of rollouts: where each is, when it moved, and what it goes by."""

from __future__ import annotations

import asyncio
import math
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from serving.errors import Unavailable
from serving.gateway import Gateway
from serving.observed import Rollouts, _read_rollouts
from serving.rollout.desk import Desk
from serving.rollout.feedback import Receipts
from serving.rollout.machine import Phase, State
from serving.rollout.plan import Plan
from serving.rollout.record import Rollout
from serving.rollout.steering import Steering
from serving.rollout.store import FileStore
from serving.telemetry.snapshot import Readings
from tests.rollout.stored import new_rollout, walk
from tests.support.fake_replica import FakeReplica, running, until
from tests.support.gateways import gateway_over


def read(*rollouts: Rollout) -> dict[tuple[str, ...], float]:
    """The values, by the family's name behind `sluice_rollout_` and the labels' values."""
    readings = Readings()
    _read_rollouts(readings, rollouts)
    return {
        (name.removeprefix("sluice_rollout_"), *sample.labels.values()): sample.value
        for name, family in readings.families.items()
        for sample in family.samples
        if name.startswith("sluice_rollout_")
    }


def in_phase(phase: Phase, step: int = 0) -> Rollout:
    return replace(new_rollout(), state=State(phase, step=step))


@pytest.mark.parametrize(
    ("rollout", "share"),
    [
        (in_phase(Phase.SHADOW), 0.0),
        (in_phase(Phase.CANARY), 0.1),
        (in_phase(Phase.CANARY, 1), 0.5),
        (in_phase(Phase.PROMOTED), 1.0),
        (in_phase(Phase.ROLLED_BACK), 0.0),
    ],
)
def test_where_it_is_and_what_each_arm_answers(rollout: Rollout, share: float) -> None:
    found = read(rollout)
    assert found["info", "digits", rollout.state.phase, "1", "2"] == 1
    assert found["step", "digits"] == rollout.state.step
    assert found["traffic_share", "digits", "candidate"] == share
    assert found["traffic_share", "digits", "stable"] == 1 - share


def test_when_it_moved_and_was_seen_and_of_a_new_one_when_it_began() -> None:
    new, old = new_rollout(started_at=1e9), walk(new_rollout(model="other"), bad_rate=0.01)
    found = read(new, old)
    assert found["moved_timestamp_seconds", "digits"] == found["seen_timestamp_seconds", "digits"] == 1e9
    assert found["moved_timestamp_seconds", "other"] == old.events[-1].at > old.events[0].at
    later = replace(old, seen_at=old.seen_at + 60)
    assert read(later)["seen_timestamp_seconds", "other"] == later.seen_at
    assert read(later)["moved_timestamp_seconds", "other"] == old.events[-1].at


def test_a_bad_candidate_is_rolled_back_as_the_evidence_is_at_its_limit_and_not_before() -> None:
    bad = walk(new_rollout(), bad_rate=0.2)
    assert bad.state.phase is Phase.ROLLING_BACK
    found = read(bad)
    assert (
        found["evidence", "digits", "errors", "worse"] >= found["evidence_limit", "digits", "errors", "worse"]
    )
    assert (
        found["evidence", "digits", "latency", "worse"]
        < found["evidence_limit", "digits", "latency", "worse"]
    )
    good = walk(new_rollout(), bad_rate=0.01)
    assert good.state.phase is Phase.PROMOTING
    found = read(good)
    for criterion in ("errors", "latency"):
        assert (
            found["evidence", "digits", criterion, "good"]
            >= found["evidence_limit", "digits", criterion, "good"]
        )
        assert found["evidence_limit", "digits", criterion, "good"] == -math.log(good.plan.alpha_promote)
    limits = {
        key[2]: limit for key, limit in found.items() if key[0] == "evidence_limit" and key[3] == "worse"
    }
    assert sum(math.exp(-limit) for limit in limits.values()) <= good.plan.alpha, "shared out among them"
    assert limits["errors"] > -math.log(good.plan.alpha)


def test_what_it_has_counted_is_told_by_criterion_and_arm() -> None:
    found = read(walk(new_rollout(), bad_rate=0.2))
    errors = {key[3:]: value for key, value in found.items() if key[:3] == ("observed", "digits", "errors")}
    assert errors == {
        ("candidate", "all"): 400,
        ("candidate", "bad"): 80,
        ("stable", "all"): 8600,
        ("stable", "bad"): 86,
    }
    assert found["observed", "digits", "latency", "candidate", "bad"] == 4
    assert found["observed", "digits", "accuracy", "candidate", "all"] == 0


def test_rollouts_are_read_at_most_so_often_and_of_a_gateway_without_any_never(tmp_path: Path) -> None:
    class CountingDesk(Desk):
        reads = 0

        def newest(self) -> list[Rollout]:
            self.reads += 1
            return [new_rollout()]

    now = 100.0
    gateway = SimpleNamespace(desk=None)
    rollouts = Rollouts(cast("Gateway", gateway), clock=lambda: now)
    assert rollouts() == []
    steering = Steering()
    gateway.desk = desk = CountingDesk(
        FileStore(tmp_path), Receipts(b"key", steering, steering.memory), Plan()
    )
    assert rollouts() == rollouts() == rollouts.latest == [new_rollout()]
    assert desk.reads == 1
    now += Rollouts.MAX_AGE_S
    assert rollouts() == [new_rollout()]
    assert desk.reads == 2
    gateway.desk = None
    assert rollouts() == []


class NotingDesk(Desk):
    """A desk that notes how often its store is read, and in which threads; and whose store may be away."""

    away = False
    reads = 0

    def newest(self) -> list[Rollout]:
        assert threading.current_thread() is not threading.main_thread(), "the event loop waits for a disk"
        self.reads += 1
        if self.away:
            raise Unavailable("the API server of the cluster has not answered yet")
        return [new_rollout()]


async def test_a_scrape_waits_for_no_store_and_tells_what_was_known_while_it_is_away(tmp_path: Path) -> None:
    async with running(FakeReplica()) as replica, gateway_over(replica) as (up, client):

        async def info() -> bool:
            got = await client.get("/metrics")
            assert got.status_code == 200
            assert "\nsluice_requests_in_flight 0.0\n" in got.text
            seen = "\nsluice_rollout_seen_timestamp_seconds{" in got.text
            assert seen == ("\nsluice_rollout_info{" in got.text)
            return seen

        receipts = Receipts(b"key", up.gateway.steering, up.gateway.steering.memory)
        up.gateway.desk = desk = NotingDesk(FileStore(tmp_path), receipts, Plan())
        desk.away = True
        await until(lambda: desk.reads > 0)
        assert not await info()
        desk.away = False
        async with asyncio.timeout(60):
            while not await info():
                await asyncio.sleep(0.05)
        desk.away, reads = True, desk.reads
        await until(lambda: desk.reads > reads)
        assert await info()

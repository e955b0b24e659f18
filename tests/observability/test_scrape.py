"""A scrape holds up no request: metrics are read in turn with them, and formatted off the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from serving.processes.peers import Peers, samples
from serving.telemetry.scrape import collected
from tests.doors.replica import ScriptedReplica
from tests.support.fake_replica import running
from tests.support.gateways import gateway_over


class Watched(Metric):
    """A family that notes which threads read its samples."""

    def __init__(self) -> None:
        self.read_by: set[int] = set()
        super().__init__("watched", "Watched.", "gauge")

    @property
    def samples(self) -> list[Sample]:
        self.read_by.add(threading.get_ident())
        return [Sample("watched", {}, 7.0)]

    @samples.setter
    def samples(self, _none: list[Sample]) -> None:
        """Ignores the empty list that `Metric` sets."""


class Watching(Collector):
    """Returns the family, and notes which threads ask for it."""

    def __init__(self) -> None:
        self.family = Watched()
        self.asked_by: set[int] = set()

    def collect(self) -> Iterator[Metric]:
        self.asked_by.add(threading.get_ident())
        yield self.family


async def test_the_page_is_written_beside_the_event_loop() -> None:
    watching = Watching()
    async with running(ScriptedReplica()) as replica, gateway_over(replica) as (up, client):
        up.gateway.metrics.registry.register(watching)
        watching.asked_by.clear()
        watching.family.read_by.clear()
        answer = await client.get("/metrics")
    assert "\nwatched 7.0\n" in answer.text
    here = threading.get_ident()
    assert watching.asked_by == {here}, "what collectors read is the event loop's"
    assert here not in watching.family.read_by


async def test_what_a_worker_tells_the_others_is_written_there_too(tmp_path: Path) -> None:
    watching = Watching()
    async with Peers(tmp_path, "0").answering({"metrics": lambda: samples(watching)}):
        told = await Peers(tmp_path, "1").ask("metrics")
    assert told == {"0": [["watched", "Watched.", "gauge", [["watched", {}, 7.0, None, None]]]]}
    assert watching.asked_by == {threading.get_ident()}
    assert threading.get_ident() not in watching.family.read_by


@pytest.mark.parametrize("families", [1, 3])
async def test_others_have_their_turns_between_families(families: int) -> None:
    order: list[str] = []

    class Several(Collector):
        def collect(self) -> Iterator[Metric]:
            for number in range(families):
                order.append(f"family {number}")
                asyncio.get_running_loop().call_soon(order.append, "another")
                yield Metric(f"family_{number}", "One.", "gauge")

    found = await collected(Several())
    assert [each.name for each in found.collect()] == [f"family_{number}" for number in range(families)]
    assert order == [each for number in range(families) for each in (f"family {number}", "another")]

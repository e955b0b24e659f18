"""A name server that flaps while there is load: nobody is left without an answer."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection

from serving.backends.discovery import Discovery, Name
from serving.backends.replica import Replica
from serving.backends.tfserving import TensorFlowServing
from tests.chaos.test_faults import load, until_more
from tests.support.beside import beside
from tests.support.fake_replica import FakeReplica, running, until
from tests.support.gateways import gateway_over

NAME = Name("model-servers", 8500)


def connect(address: str) -> Replica:
    return Replica(TensorFlowServing(address))


class FlappingServer:
    """Answers each question by the next line of its script; one that it hangs on is answered when freed.

    Attributes:
        asked: questions so far; `open` those that it has not answered.
        most_open: of these, how many there were at once.
    """

    def __init__(self, script: list[str], **addresses: str) -> None:
        self._lines = itertools.cycle(script)
        self._addresses = addresses
        self.asked = self.open = self.most_open = 0
        self.free = asyncio.Event()

    async def __call__(self, name: Name) -> Collection[str]:
        assert name == NAME
        self.asked += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            line = next(self._lines)
            if line == "no such name":
                raise OSError(-2, "Name or service not known")
            if line == "try again":
                raise OSError(-3, "Temporary failure in name resolution")
            if line == "hangs":
                await self.free.wait()
                line = "a b"
            return {self._addresses[each] for each in line.split()}
        finally:
            self.open -= 1


# Two answers in a row without a replica let it go: each is let go, and comes back, while the other serves.
SCRIPT = [
    "a b",
    "no such name",
    "",
    "a",
    "a b",
    "try again",
    "a",
    "a",
    "",
    "a b",
    "b",
    "no such name",
    "b",
    "b",
    "a b",
]


async def test_a_name_server_that_flaps_fails_no_request() -> None:
    async with (
        running(FakeReplica()) as one,
        running(FakeReplica()) as other,
        gateway_over(wait=False) as (up, _),
    ):
        server = FlappingServer(SCRIPT, a=one.address, b=other.address)
        discovery = Discovery(up.pool, [NAME], connect, server, timeout_s=0.1)
        async with beside(discovery.watch(interval_s=0.1)):
            await up.catalog.ready()
            async with load(up.http_url, clients=16) as seen:
                goal = server.asked + 2 * len(SCRIPT)
                await until(lambda: server.asked >= goal, timeout_s=60)
                await until_more(seen, 100)
    assert set(seen) == {"200"}, seen
    assert one.batches
    assert other.batches


async def test_a_name_server_that_hangs_is_asked_once_and_heard_when_it_answers() -> None:
    async with (
        running(FakeReplica()) as one,
        running(FakeReplica()) as other,
        gateway_over(wait=False) as (up, _),
    ):
        server = FlappingServer(["a", "hangs"], a=one.address, b=other.address)
        discovery = Discovery(up.pool, [NAME], connect, server, timeout_s=0.02)
        await discovery.look()
        await up.catalog.ready()
        async with load(up.http_url, clients=4) as seen:
            for _ in range(5):
                await discovery.look()
                await until_more(seen, 20)
            assert (server.asked, server.open, server.most_open) == (2, 1, 1)
            server.free.set()
            await until(lambda: server.open == 0)
            await discovery.look()
            await until(lambda: up.pool.availability("digits") == {1: 2})
            await until_more(seen, 20)
    assert set(seen) == {"200"}, seen
    assert server.asked == 2

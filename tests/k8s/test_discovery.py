"""Replicas that come and go by DNS: what an answer means, and what happens to calls in flight."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest

from serving.backends import discovery
from serving.backends.discovery import Discovery, Followed, Name
from serving.backends.pool import Pool
from serving.backends.replica import Replica
from serving.backends.tfserving import TensorFlowServing
from serving.errors import InvalidInput
from tests.support.fake_replica import FakeReplica, running, until
from tests.support.gateways import counted, gateway_over
from tests.support.pictures import encoded, gradient

NAME = Name("model-servers", 8500)


def connect(address: str) -> Replica:
    return Replica(TensorFlowServing(address))


def test_addresses_and_names_are_told_apart() -> None:
    given = ["127.0.0.1:8500", "dns:model-servers:8500", "unix:/run/a.sock", "dns:a.b.svc.cluster.local:9000"]
    fixed, names = discovery.split([*given, *given])  # what is named twice is still one
    assert fixed == ["127.0.0.1:8500", "unix:/run/a.sock"]
    assert names == [Name("model-servers", 8500), Name("a.b.svc.cluster.local", 9000)]


@pytest.mark.parametrize(
    "address", ["dns:", "dns:host", "dns::8500", "dns:host:http", "dns:host:0", "dns:host:70000"]
)
def test_a_malformed_name_is_refused_by_name(address: str) -> None:
    with pytest.raises(InvalidInput, match=f'replica "{address}" is not of the form dns:HOST:PORT'):
        discovery.split([address])


@pytest.mark.parametrize("address", ["", "host", ":8500", "http://host:8500", "host:grpc", "host:70000"])
def test_an_address_that_cannot_be_is_refused(address: str) -> None:
    with pytest.raises(InvalidInput, match=f'replica "{address}" is not of the form HOST:PORT, such as'):
        discovery.split([address])


def test_what_answers_mean() -> None:
    known = Followed()
    assert known.see({"b", "a"}) == (["a", "b"], [])
    assert known.see({"a", "b"}) == ([], [])
    assert known.see({"a", "c"}) == (["c"], [])  # b is missing once: a name server may be restarting
    assert known.see({"a", "b"}) == ([], [])  # c is missing once, b is back
    assert known.see({"a", "b"}) == ([], ["c"])
    assert known.see(set()) == ([], [])  # says nothing
    assert known.see(set()) == ([], [])
    assert known.see({"d"}) == (["d"], [])
    assert known.see({"d"}) == ([], ["a", "b"])
    assert known.see({"a", "d"}) == (["a"], [])  # and may come back


async def test_localhost_resolves_to_what_grpc_takes() -> None:
    found = await discovery.resolve(Name("localhost", 8500))
    assert found <= {"127.0.0.1:8500", "[::1]:8500"}
    assert found


async def test_a_name_that_does_not_exist_is_an_os_error() -> None:
    with pytest.raises(OSError, match=r"(?i)name|host"):
        await discovery.resolve(Name("no-such-host.invalid", 8500))


async def test_a_failing_name_server_takes_no_replica_away() -> None:
    answers: list[Any] = [{"127.0.0.1:1"}, OSError("no name server"), TimeoutError(), {"127.0.0.1:1"}]

    async def scripted(name: Name) -> set[str]:
        assert name == NAME
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return set(answer)

    pool = Pool([connect("127.0.0.1:2")], calls_per_replica=1)
    following = Discovery(pool, [NAME], connect, scripted)
    for _ in range(4):
        await following.look()
        assert [replica.address for replica in pool.replicas] == ["127.0.0.1:2", "127.0.0.1:1"]
    await pool.aclose()


async def test_an_address_that_several_have_is_one_replica_until_the_last_lets_it_go() -> None:
    other = Name("more-model-servers", 8500)
    found = {NAME: {"fixed:1", "both:1", "one:1"}, other: {"both:1"}}

    async def scripted(name: Name) -> set[str]:
        return found[name]

    def addresses() -> list[str]:
        return sorted(replica.address for replica in pool.replicas)

    pool = Pool([connect("fixed:1")], calls_per_replica=1)
    following = Discovery(pool, [NAME, other], connect, scripted)
    await following.look()
    assert addresses() == ["both:1", "fixed:1", "one:1"]
    found[NAME] = {"one:1"}
    for _ in range(discovery.ABSENT_ROUNDS):
        await following.look()
    assert addresses() == ["both:1", "fixed:1", "one:1"]
    found[other] = {"new:1"}
    for _ in range(discovery.ABSENT_ROUNDS):
        await following.look()
    assert addresses() == ["fixed:1", "new:1", "one:1"]
    await pool.aclose()


async def test_a_replica_that_leaves_answers_what_it_was_asked() -> None:
    release, arrived = asyncio.Event(), asyncio.Event()

    async def slow(_request: Any) -> None:
        arrived.set()
        await release.wait()

    leaving = FakeReplica(before_predict=slow)
    staying = FakeReplica()
    async with running(leaving), running(staying), gateway_over(leaving) as (gateway, client):
        post: dict[str, Any] = {
            "content": encoded(gradient(), "PNG"),
            "headers": {"content-type": "image/png"},
        }
        first = asyncio.create_task(client.post("/v1/models/digits:classify", **post))
        await arrived.wait()
        gateway.pool.join(connect(staying.address))
        await until(lambda: gateway.pool.availability("digits") == {1: 2})
        gateway.pool.leave(leaving.address)
        await until(lambda: gateway.pool.availability("digits") == {1: 1})
        second = await client.post("/v1/models/digits:classify", **post)
        assert second.status_code == 200
        assert not first.done()
        release.set()
        assert (await first).status_code == 200
        assert (sum(leaving.batches), sum(staying.batches)) == (1, 1)
        gone = {"replica": leaving.address}
        await until(
            lambda: gateway.gateway.metrics.registry.get_sample_value("sluice_replica_up", gone) is None
        )
        assert counted(gateway, "sluice_replica_up", replica=staying.address) == 1


async def test_a_replica_that_joins_gets_what_waits_for_one_that_hangs() -> None:
    """Those who wait ask for nothing more, and no call ends: its coming alone must have them sent."""
    release = asyncio.Event()

    async def hang(_request: Any) -> None:
        await release.wait()

    hung, fresh = FakeReplica(before_predict=hang), FakeReplica()
    async with (
        running(hung),
        running(fresh),
        gateway_over(hung, calls_per_replica=1) as (gateway, client),
    ):
        picture, png = encoded(gradient(), "PNG"), {"content-type": "image/png"}
        posts = [
            asyncio.create_task(client.post("/v1/models/digits:classify", content=picture, headers=png))
            for _ in range(4)
        ]
        await until(lambda: gateway.gateway.batcher.depth() == 3)
        gateway.pool.join(connect(fresh.address))
        await until(lambda: sum(each.done() for each in posts) == 3)
        assert sum(fresh.batches) == 3
        release.set()
        assert {(await each).status_code for each in posts} == {200}


async def test_a_replica_that_never_answers_is_closed_all_the_same() -> None:
    now = time.monotonic()
    clock = [now]
    pool = Pool([connect("127.0.0.1:1")], calls_per_replica=1, clock=lambda: clock[0])
    stuck = pool.replicas[0]
    stuck.in_flight = 1
    pool.leave(stuck.address)
    assert pool.replicas == ()
    await pool.refresh(["digits"])
    assert [replica for replica, _ in pool._leaving] == [stuck]
    assert stuck.api._channel.get_state() is not grpc.ChannelConnectivity.SHUTDOWN
    clock[0] = now + 31
    await pool.refresh(["digits"])
    assert pool._leaving == []
    assert stuck.api._channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN
    await pool.aclose()


async def test_a_gateway_follows_a_name_from_no_replica_to_two_and_back_to_one() -> None:
    answer: set[str] = set()

    async def scripted(_name: Name) -> set[str]:
        return answer

    first, second = FakeReplica(), FakeReplica()
    async with running(first), running(second), gateway_over(wait=False) as (gateway, client):
        assert (await client.get("/readyz")).status_code == 503
        following = Discovery(gateway.pool, [NAME], connect, scripted)
        answer |= {first.address, second.address}
        await following.look()
        await until(lambda: gateway.pool.availability("digits") == {1: 2})
        await gateway.catalog.ready()
        assert (await client.get("/readyz")).status_code == 200
        answer -= {first.address}
        await following.look()
        await following.look()
        await until(lambda: gateway.pool.availability("digits") == {1: 1})
        assert [replica.address for replica in gateway.pool.replicas] == [second.address]

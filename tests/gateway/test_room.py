"""How many calls a replica is given at once, and who waits for a place."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from serving import errors, protos, tensors
from serving.backends.pool import MAX_ATTEMPTS, Pool
from serving.backends.replica import Replica
from serving.backends.room import FIRST, MOST, Room, Waiting
from serving.backends.tfserving import TensorFlowServing, VersionStatus
from tests.support.fake_replica import FakeReplica, Refusal, running, until
from tests.support.gateways import counted, gateway_over
from tests.support.replicas import replica

FULL = "Server Threadpool Exhausted"


@asynccontextmanager
async def pool_of(*replicas: Replica) -> AsyncIterator[Pool]:
    pool = Pool(replicas, calls_per_replica=2)
    try:
        yield pool
    finally:
        await pool.aclose()


class Server:
    """Refuses what is more than its threads, as TensorFlow Serving does; answers as it is told to."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.answer = asyncio.Event()
        self.begun: list[Any] = []
        self.busy = self.most = self.refused = 0

    def call(self, name: Any = None) -> Callable[[Any, float], Any]:
        async def made(_api: Any, _left_s: float) -> Any:
            if self.busy >= self.threads:
                self.refused += 1
                raise errors.Overloaded(FULL)
            self.busy += 1
            self.most = max(self.most, self.busy)
            self.begun.append(name)
            try:
                await self.answer.wait()
            finally:
                self.busy -= 1
            return name

        return made


def asked(pool: Pool, what: Any, **options: Any) -> asyncio.Task[Any]:
    deadline = time.monotonic() + options.pop("within_s", 20.0)
    return asyncio.create_task(pool.call("digits", 1, what, deadline=deadline, **options))


def test_refusals_tell_the_number_of_threads_and_answers_that_there_may_be_more() -> None:
    room = Room()
    for _ in range(FIRST):
        room.take()
    assert room.taken == room.limit
    for _ in range(FIRST - 8):
        room.refused()
        room.release()
    assert (room.limit, room.taken, room.free) == (8.0, 8, False)
    answers = 0
    while not room.free:
        room.answered()
        answers += 1
    assert answers > 50, "it is tried rarely"
    room.take()
    room.refused()
    room.release()
    assert (room.limit, room.free) == (8.0, False)


def test_a_replica_that_refuses_nothing_is_given_more_and_more_up_to_a_bound() -> None:
    room = Room()
    for _ in range(100_000):
        while room.free:
            room.take()
        room.answered()
    assert room.taken == room.limit == MOST
    for _ in range(1000):
        room.refused()
    while room.taken:
        room.release()
    assert room.free, "one call is always tried"


async def test_places_go_to_the_first_that_waits_for_that_replica_unless_one_goes_ahead() -> None:
    one, other = replica("127.0.0.1:1", limit=1.0), replica("127.0.0.1:2", limit=1.0)
    waiting: Waiting[Replica] = Waiting()
    for each in (one, other):
        each.room.take()
    came: list[str] = []

    async def wait(name: str, *hosts: Replica, ahead: bool = False) -> None:
        found = await waiting.place(lambda: hosts, 20.0, ahead=ahead)
        came.append(f"{name} at {'nobody' if found is None else found.address[-1]}")

    tasks = [
        asyncio.create_task(each)
        for each in (wait("a", one), wait("b", one, other), wait("c", one), wait("d", one, ahead=True))
    ]
    await until(lambda: len(waiting) == 4)
    for count, host in enumerate((other, one, one, one), 1):
        waiting.leave(host)
        await until(lambda count=count: len(came) == count)  # type: ignore[misc]
    assert came == ["b at 2", "d at 1", "a at 1", "c at 1"]
    assert (one.room.taken, other.room.taken, len(waiting)) == (1, 1, 0)
    await asyncio.gather(*tasks)


async def test_a_place_is_lost_neither_by_one_who_leaves_nor_by_one_whose_time_is_over() -> None:
    host = replica(limit=1.0)
    host.room.take()
    waiting: Waiting[Replica] = Waiting()
    assert await waiting.place(lambda: [host], 0.0) is None
    leaving = [asyncio.create_task(waiting.place(lambda: [host], 20.0)) for _ in range(2)]
    staying = asyncio.create_task(waiting.place(lambda: [host], 20.0))
    await until(lambda: len(waiting) == 3)
    leaving[0].cancel()  # while it waits
    await until(lambda: len(waiting) == 2)
    waiting.leave(host)
    leaving[1].cancel()  # in the moment after it was given the place
    assert await staying is host
    assert all(isinstance(each, asyncio.CancelledError) for each in await gathered(leaving))
    waiting.leave(host)
    assert (host.room.taken, len(waiting)) == (0, 0)


async def gathered(tasks: list[asyncio.Task[Any]]) -> list[Any]:
    return list(await asyncio.gather(*tasks, return_exceptions=True))


@pytest.mark.parametrize("hedge_after_s", [None, 60.0])
async def test_a_server_with_few_threads_answers_everybody(hedge_after_s: float | None) -> None:
    server = Server(threads=4)
    async with pool_of(replica()) as pool:
        tasks = [asked(pool, server.call(number), hedge_after_s=hedge_after_s) for number in range(200)]
        await until(lambda: server.busy == 4 and int(pool.replicas[0].room.limit) == 4)
        refused = server.refused
        assert 1 <= refused <= FIRST - 4
        server.answer.set()
        assert await gathered(tasks) == list(range(200))
        assert server.most == 4
        assert server.refused - refused < 20, "what was learned is kept to, and tried rarely"
        assert pool.replicas[0].room.taken == 0
        assert pool.retries == 0, "who was refused was not tried, and needs no budget"


async def test_a_batch_goes_before_other_calls_that_wait() -> None:
    server = Server(threads=1)
    async with pool_of(replica()) as pool:
        tasks = [asked(pool, server.call(number)) for number in range(10)]
        await until(lambda: server.busy == 1 and int(pool.replicas[0].room.limit) == 1)
        slot = pool.book("digits", 1)
        assert slot is not None
        batch = asked(pool, server.call("batch"), slot=slot)
        await until(lambda: len(pool._waiting) == 10)
        server.answer.set()
        await batch
        assert server.begun.index("batch") == 1
        await asyncio.gather(*tasks)
        slot.release()


async def test_who_waits_goes_elsewhere_if_the_replica_goes() -> None:
    server = Server(threads=100)
    dying, other = replica("127.0.0.1:1", limit=1.0), replica("127.0.0.1:2")
    other.versions = {}
    async with pool_of(dying, other) as pool:
        first = asked(pool, server.call("first"))
        waits = [asked(pool, server.call(number)) for number in range(3)]
        await until(lambda: server.busy == 1 and len(pool._waiting) == 3)
        dying.went()
        other.versions = {"digits": {1: VersionStatus("AVAILABLE")}}
        server.answer.set()
        assert await gathered([first, *waits]) == ["first", 0, 1, 2]
        assert (dying.room.taken, other.room.taken) == (0, 0)


async def test_who_waits_is_told_if_the_replica_goes_and_there_is_no_other() -> None:
    server = Server(threads=100)
    dying = replica(limit=1.0)
    async with pool_of(dying) as pool:
        first, waits = asked(pool, server.call("first")), asked(pool, server.call("second"))
        await until(lambda: server.busy == 1 and len(pool._waiting) == 1)
        dying.went()
        server.answer.set()
        assert await first == "first"
        with pytest.raises(errors.Unavailable, match="no replica that has version 1"):
            await waits
        assert server.begun == ["first"]
        assert (dying.room.taken, len(pool._waiting)) == (0, 0)


async def test_who_waits_gets_a_place_at_a_replica_that_joins() -> None:
    """Also once its first one is there no longer, and in the order in which they wait."""
    server = Server(threads=100)
    async with running(FakeReplica()) as old, running(FakeReplica()) as new:
        full = replica(old.address, limit=1.0)
        async with pool_of(full) as pool:
            first = asked(pool, server.call("first"))
            await until(lambda: server.busy == 1)
            waits = [asked(pool, server.call(number)) for number in range(3)]
            await until(lambda: len(pool._waiting) == 3)
            joining = Replica(TensorFlowServing(new.address))
            joining.room.limit = 2.0
            pool.join(joining)
            await pool.refresh(["digits"])
            await until(lambda: server.busy == 3)
            assert server.begun == ["first", 0, 1]
            assert (full.room.taken, joining.room.taken, len(pool._waiting)) == (1, 2, 1)
            old.versions.clear()
            await pool.refresh(["digits"])
            assert len(pool._waiting) == 1
            server.answer.set()
            assert await gathered([first, *waits]) == ["first", 0, 1, 2]
            assert (full.room.taken, joining.room.taken, joining.in_flight) == (0, 0, 0)


async def test_who_waits_is_told_at_once_if_every_replica_goes_though_calls_there_hang() -> None:
    server = Server(threads=100)
    async with pool_of(replica("127.0.0.1:1", limit=1.0)) as pool:
        first, waits = asked(pool, server.call("first")), asked(pool, server.call("second"))
        await until(lambda: server.busy == 1 and len(pool._waiting) == 1)
        await pool.refresh(["digits"])  # nobody is at that address
        async with asyncio.timeout(10):
            with pytest.raises(errors.Unavailable, match="no replica that has version 1"):
                await waits
        server.answer.set()
        assert await first == "first"
        assert pool.replicas[0].room.taken == 0


async def test_waiting_ends_at_the_deadline() -> None:
    server = Server(threads=1)
    async with pool_of(replica(limit=1.0)) as pool:
        first = asked(pool, server.call("first"))
        late = asked(pool, server.call("late"), within_s=0.05)
        with pytest.raises(errors.DeadlineExceeded, match="before a replica was free"):
            await late
        server.answer.set()
        assert await first == "first"
        assert server.begun == ["first"]


async def test_a_model_that_runs_out_of_memory_is_not_asked_for_ever() -> None:
    attempts = 0

    async def too_large(_api: Any, _left_s: float) -> None:
        nonlocal attempts
        attempts += 1
        raise errors.Overloaded("OOM when allocating tensor with shape[64,512,512,64]")

    async with pool_of(replica()) as pool:
        with pytest.raises(errors.Overloaded, match="OOM"):
            await asked(pool, too_large)
    assert 1 <= attempts <= MAX_ATTEMPTS


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, FULL),
        (
            grpc.StatusCode.UNAVAILABLE,
            "The batch scheduling queue to which this task was submitted is full; currently 4 are queued",
        ),
    ],
    ids=["threads", "queue"],
)
async def test_a_gateway_before_a_server_with_little_room_refuses_no_tensors(
    code: grpc.StatusCode, text: str
) -> None:
    """Also while nothing is left of the threads to say which versions there are."""
    busy, most, refused = 0, 0, 0

    async def few_threads(_request: Any) -> None:
        nonlocal busy, most, refused
        if busy >= 4:
            refused += 1
            raise Refusal(code, text)
        busy += 1
        most = max(most, busy)
        try:
            await asyncio.sleep(0.01)
        finally:
            busy -= 1

    class Busy(FakeReplica):
        async def status(self, request: Any) -> Any:
            if busy:
                raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, FULL)
            return await super().status(request)

    request = protos.PredictRequest(model_spec={"name": "digits"})
    tensors.fill_proto(request.inputs["images"], np.zeros([1, 8, 8, 1], np.uint8))
    async with (
        running(Busy(before_predict=few_threads)) as up,
        gateway_over(up, max_in_flight=1000) as (gateway, _),
        grpc.aio.insecure_channel(gateway.grpc_address) as channel,
    ):
        types = protos.methods(protos.PREDICTION_SERVICE)["Predict"]
        predict = channel.unary_unary(
            f"/{protos.PREDICTION_SERVICE}/Predict",
            request_serializer=types[0].SerializeToString,
            response_deserializer=types[1].FromString,
        )
        for _ in range(20):
            answers = await asyncio.gather(*(predict(request) for _ in range(30)))
            assert all("scores" in answer.outputs for answer in answers)
        assert most == 4
        assert refused < 200
        limit = counted(gateway, "sluice_replica_calls_limit", replica=up.address)
        assert 4 <= limit < 6

"""Replicas and clients that misbehave while there is load: what callers see of it.

Replicas are processes of their own, so that they can be killed and stopped; others are scripted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any, get_args

import grpc
import httpx
import pytest

from serving.backends.members import STATUS_TIMEOUT_S
from serving.main import Running
from tests.chaos.http2_proxy import Harm, HarmfulProxy
from tests.support.fake_replica import FakeReplica, NoNumbers, Refusal, running, until
from tests.support.gateways import gateway_over
from tests.support.http import grey_png
from tests.support.pictures import encoded, gradient

PATH = "/v1/models/digits:classify"
PNG = {"content-type": "image/png"}
PICTURE = encoded(gradient(), "PNG")


class ReplicaProcess(FakeReplica):
    """A scripted replica in a process of its own, on a fixed port."""

    process: asyncio.subprocess.Process

    async def start(self) -> None:
        """Run it; returns once it takes calls."""
        port = self.address.rpartition(":")[2] or "0"
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.chaos.replica_process", port, stdout=asyncio.subprocess.PIPE
        )
        assert self.process.stdout is not None
        self.address = (await self.process.stdout.readline()).decode().strip()

    async def kill(self) -> None:
        """End it at once, whatever it does."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


@contextlib.asynccontextmanager
async def two_replicas(
    **settings: Any,
) -> AsyncIterator[tuple[Running, httpx.AsyncClient, list[ReplicaProcess]]]:
    """A gateway in front of two replicas that are processes."""
    replicas = [ReplicaProcess(), ReplicaProcess()]
    try:
        await asyncio.gather(*(each.start() for each in replicas))
        async with gateway_over(*replicas, **settings) as (up, client):
            await until(lambda: up.pool.availability("digits") == {1: 2})
            yield up, client, replicas
    finally:
        for each in replicas:
            await each.kill()


@contextlib.asynccontextmanager
async def load(
    url: str, clients: int = 32, taken_s: list[float] | None = None
) -> AsyncIterator[Counter[str]]:
    """So many clients that post without pause while the block runs; what became of each request.

    How long each took is appended to `taken_s`.
    """
    seen: Counter[str] = Counter()
    stop = asyncio.Event()

    async def post(client: httpx.AsyncClient) -> None:
        while not stop.is_set():
            answer = await client.post(PATH, content=PICTURE, headers=PNG)
            seen[str(answer.status_code) if answer.status_code == 200 else answer.text] += 1
            if taken_s is not None:
                taken_s.append(answer.elapsed.total_seconds())

    limits = httpx.Limits(max_connections=clients)
    async with (
        httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client,
        asyncio.TaskGroup() as tasks,
    ):
        for _ in range(clients):
            tasks.create_task(post(client))
        try:
            yield seen
        finally:
            stop.set()


async def until_more(seen: Counter[str], count: int) -> None:
    """Wait for so many further answers."""
    goal = seen["200"] + count
    await until(lambda: seen["200"] >= goal, timeout_s=60)


async def until_harmed(proxy: HarmfulProxy, count: int) -> None:
    """Wait until so many calls have met harm."""
    await until(lambda: proxy.harmed >= count, timeout_s=60)


async def test_nobody_notices_that_one_of_two_replicas_is_killed_and_comes_back() -> None:
    async with two_replicas() as (up, _, replicas), load(up.http_url) as seen:
        await until_more(seen, 200)
        await replicas[0].kill()
        await until_more(seen, 300)
        await until(lambda: up.pool.availability("digits") == {1: 1})
        await replicas[0].start()
        await until(lambda: up.pool.availability("digits") == {1: 2})
        await until(lambda: up.pool.replicas[0].weight(time.monotonic()) == 1.0)
        await until(lambda: up.pool.replicas[0].in_flight > 0)
        await until_more(seen, 200)
    assert set(seen) == {"200"}, seen


async def test_calls_on_a_replica_that_is_stopped_are_answered_by_the_other(
    record_property: Callable[[str, object], None],
) -> None:
    taken_s: list[float] = []
    async with (
        two_replicas(status_interval_s=0.5) as (up, _, replicas),
        load(up.http_url, taken_s=taken_s) as seen,
    ):
        await until_more(seen, 300)
        usual_s = sorted(taken_s)[int(0.99 * len(taken_s))]
        os.kill(replicas[0].process.pid, signal.SIGSTOP)
        try:
            await until(lambda: up.pool.replicas[0].breaker.failures > 0 or not up.pool.replicas[0].reachable)
            await until_more(seen, 1000)
            await until(lambda: up.pool.replicas[0].in_flight == 0)
        finally:
            os.kill(replicas[0].process.pid, signal.SIGCONT)
        returned = time.monotonic()
        await until(lambda: up.pool.replicas[0].usable("digits", 1, time.monotonic()))
        await until(lambda: up.pool.replicas[0].weight(time.monotonic()) == 1.0)
        await until(lambda: up.pool.replicas[0].in_flight > 0)
        recovery_s = time.monotonic() - returned
        await until_more(seen, 100)
    late = sum(each > usual_s + STATUS_TIMEOUT_S for each in taken_s)
    record_property("late share", late / len(taken_s))
    record_property("recovery, s", recovery_s)
    print(
        f"{late} of {len(taken_s)} later than {usual_s + STATUS_TIMEOUT_S:.2f} s; back in {recovery_s:.1f} s"
    )
    assert set(seen) == {"200"}, seen
    assert late <= 0.01 * len(taken_s)


async def test_a_replica_that_fails_now_and_then_costs_nobody_an_answer() -> None:
    calls = 0

    async def each_tenth_fails(_request: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % 10 == 0:
            raise Refusal(grpc.StatusCode.UNAVAILABLE, "GOAWAY")
        if calls % 10 == 5:
            raise Refusal(grpc.StatusCode.INTERNAL, "wrong")

    async with (
        running(FakeReplica(before_predict=each_tenth_fails)) as sick,
        running(FakeReplica()) as well,
        gateway_over(sick, well) as (up, _),
        load(up.http_url, clients=16) as seen,
    ):
        await until_more(seen, 1000)
    assert calls >= 20  # as many as it takes to judge a replica; then it is left alone
    assert set(seen) == {"200"}, seen


async def test_a_replica_that_answers_nonsense_is_not_believed() -> None:
    class Liar(FakeReplica):
        """Says two classes where there are ten."""

        def _answer(self, request: Any, **outputs: Any) -> Any:
            shortened = {name: each[:, :2] if name == "scores" else each for name, each in outputs.items()}
            return super()._answer(request, **shortened)

    async with (
        running(Liar()) as liar,
        running(FakeReplica()) as honest,
        gateway_over(liar, honest) as (up, _),
        load(up.http_url, clients=8) as seen,
    ):
        await until_more(seen, 300)
        assert liar.batches
    assert set(seen) == {"200"}, seen


async def test_a_replica_without_numbers_is_not_believed() -> None:
    async with (
        running(NoNumbers(everywhere=True)) as sick,
        running(FakeReplica()) as well,
        gateway_over(sick, well) as (up, _),
        load(up.http_url, clients=8) as seen,
    ):
        await until_more(seen, 300)
        assert sick.batches
    assert set(seen) == {"200"}, seen


async def test_an_image_without_numbers_costs_the_others_of_its_batch_nothing() -> None:
    async with running(NoNumbers()) as fake, gateway_over(fake, calls_per_replica=1) as (_, client):
        values = [255, 100, 200, 255, 30, 150] * 5
        answers = await asyncio.gather(
            *(client.post(PATH, content=grey_png(each), headers=PNG) for each in values)
        )
        assert max(fake.batches) > 1
    for value, answer in zip(values, answers, strict=True):
        assert answer.status_code == (500 if value == 255 else 200), answer.text
    assert "not a finite number" in answers[0].json()["detail"]


@pytest.mark.parametrize("harm", get_args(Harm))
async def test_a_replica_whose_every_50th_call_meets_harm_costs_nobody_an_answer(harm: Harm) -> None:
    """Beside one that is well, and then alone: what it does not answer it is asked once more."""
    async with running(FakeReplica()) as fake, running(FakeReplica()) as well:
        for others in ([well], []):
            async with (
                HarmfulProxy(fake.address, harm, every=50).running() as proxy,
                gateway_over(FakeReplica(address=proxy.address), *others) as (up, _),
                load(up.http_url, clients=8) as seen,
            ):
                await until_harmed(proxy, 3)
                await until_more(seen, 50)
            assert set(seen) == {"200"}, (harm, others, seen)


async def test_clients_that_come_and_leave_cost_nothing_that_lasts() -> None:
    async def slow(_request: Any) -> None:
        await asyncio.sleep(0.01)

    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\n"
    head += f"content-length: {len(PICTURE)}\r\n\r\n"

    async with (
        running(FakeReplica(before_predict=slow)) as fake,
        gateway_over(fake) as (up, _),
        load(up.http_url, clients=4) as seen,
    ):
        port = int(up.http_url.rpartition(":")[2])

        async def come_and_leave(index: int) -> None:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head.encode() + PICTURE[: len(PICTURE) if index % 2 else 10])
            await writer.drain()
            writer.transport.abort()

        for _ in range(5):
            await asyncio.gather(*(come_and_leave(index) for index in range(100)))
        await until_more(seen, 50)
        await until(lambda: up.gateway.admission.in_flight <= 4)
        await until(lambda: up.gateway.batcher.depth() <= 4)
    assert set(seen) == {"200"}, seen
    assert up.gateway.admission.in_flight == 0
    assert up.gateway.admission.held_bytes == 0
    assert up.gateway.admission.in_progress == 0

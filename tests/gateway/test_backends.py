"""Replicas: the breaker, the choice of two, retries, what is learned from failures."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from typing import Any

import grpc
import numpy as np
import pytest
from structlog.testing import capture_logs

from serving import errors, protos, tensors
from serving.backends import tfserving
from serving.backends.breaker import FIRST_PAUSE_S, MAX_PAUSE_S, THRESHOLD, Breaker
from serving.backends.pool import Pool, choose
from serving.backends.replica import Replica
from serving.backends.tfserving import TensorFlowServing, VersionStatus
from tests.support.fake_replica import FakeReplica, Refusal, running
from tests.support.replicas import places, replica


def test_breaker_leaves_a_failing_replica_alone_for_ever_longer_pauses() -> None:
    breaker = Breaker()
    for _ in range(THRESHOLD - 1):
        breaker.fail(now=0.0, started=0.0)
    assert breaker.allows(now=0.0)
    pauses = []
    for _ in range(10):
        breaker.fail(now=0.0, started=0.0)
        pauses.append(breaker.probe_at)
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == MAX_PAUSE_S


def test_breaker_lets_one_call_try_and_closes_on_success() -> None:
    breaker = Breaker()
    for _ in range(THRESHOLD):
        breaker.fail(now=10.0, started=10.0)
    assert not breaker.allows(now=10.0)
    after = 10.0 + FIRST_PAUSE_S
    assert breaker.allows(now=after)
    breaker.start()
    assert not breaker.allows(now=after)
    breaker.abandon()
    assert breaker.allows(now=after)
    breaker.start()
    breaker.succeed()
    assert breaker.allows(now=0.0)


def test_calls_that_fail_together_count_once_unless_one_got_no_answer_at_all() -> None:
    breaker = Breaker()
    for _ in range(2 * THRESHOLD):
        breaker.fail(now=5.0, started=4.0)
    assert breaker.failures == 1
    breaker.fail(now=6.0, started=5.5)
    assert breaker.failures == 2
    breaker.trip()
    breaker.fail(now=7.0, started=4.0)
    assert not breaker.allows(now=7.0)


def test_calls_that_are_lost_together_open_the_breaker_once() -> None:
    breaker = Breaker()
    for _ in range(6):
        breaker.trip()
        breaker.fail(now=10.0, started=5.0)
    assert breaker.probe_at == 10.0 + FIRST_PAUSE_S
    breaker.trip()
    breaker.fail(now=12.0, started=11.0)  # it was tried, and lost that call, too
    assert breaker.probe_at == 12.0 + 2 * FIRST_PAUSE_S


def test_every_status_of_a_replica_is_a_kind_of_error() -> None:
    assert set(tfserving.KIND_OF_STATUS) == set(grpc.StatusCode) - {grpc.StatusCode.OK}


async def test_an_error_of_the_caller_is_an_answer_of_the_replica_that_was_tried() -> None:
    async def refuse(_api: TensorFlowServing, _left_s: float) -> None:
        raise errors.InvalidInput("wrong shape")

    tried = replica("localhost:1")
    for _ in range(THRESHOLD):
        tried.breaker.fail(now=0.0, started=0.0)
    after = FIRST_PAUSE_S
    assert tried.breaker.allows(after)
    with pytest.raises(errors.InvalidInput):
        await tried.run("digits", 1, refuse, deadline=after + 1.0, clock=lambda: after)
    assert tried.breaker == Breaker(failed_at=0.0, probe_at=after)


@pytest.mark.parametrize(
    ("took_s", "deadline_s", "failed"),
    [
        (2.0, 2.0, True),
        (1.995, 2.0, True),  # its timer may be a little early
        (1.9, 2.0, False),
        (2.0, 5.0, False),
        (0.5, 0.5, False),  # too hasty to tell of the replica
    ],
)
async def test_a_call_that_is_cancelled_has_failed_if_it_had_a_fair_time_and_used_it_up(
    took_s: float, deadline_s: float, failed: bool
) -> None:
    now, asked = 100.0, asyncio.Event()

    async def hang(_api: TensorFlowServing, _left_s: float) -> None:
        asked.set()
        await asyncio.Event().wait()

    host = replica("localhost:1")
    made = asyncio.create_task(host.run("digits", 1, hang, deadline=now + deadline_s, clock=lambda: now))
    await asked.wait()
    now += took_s
    made.cancel()
    with pytest.raises(asyncio.CancelledError):
        await made
    assert (host.breaker.failures, host.in_flight) == (int(failed), 0)
    assert host.latency_s == pytest.approx(0.0 if failed else took_s), "it would have taken longer"


async def test_latency_is_a_moving_average_of_answers() -> None:
    now, took_s, host = 0.0, 0.0, replica("localhost:1")

    async def answer(_api: TensorFlowServing, _left_s: float) -> None:
        nonlocal now
        now += took_s

    for seconds, average_s in ((1.0, 1.0), (2.0, 1.1), (1.1, 1.1), (0.1, 1.0)):
        took_s = seconds
        await host.run("digits", 1, answer, deadline=1e9, clock=lambda: now)
        assert host.latency_s == pytest.approx(average_s)


async def test_choice_is_the_less_loaded_of_two() -> None:
    busy, idle = replica("localhost:1"), replica("localhost:2")
    busy.in_flight = 3
    assert choose([busy, idle], random.Random(1), now=0.0) is idle
    busy.in_flight = 0
    idle.latency_s = 0.2
    assert choose([busy, idle], random.Random(1), now=0.0) is busy
    assert choose([], random.Random(1), now=0.0) is None


async def test_availability_and_capacity_count_reachable_replicas_with_the_version() -> None:
    one, two = replica("localhost:1"), replica("localhost:2")
    two.versions["digits"][2] = VersionStatus("AVAILABLE")
    two.versions["digits"][3] = VersionStatus("LOADING")
    pool = Pool([one, two], calls_per_replica=2)
    assert pool.availability("digits") == {1: 2, 2: 1}
    assert places(pool, "digits", 1) == 4
    assert places(pool, "digits", 3) == 0
    one.reachable = False
    assert pool.availability("digits") == {1: 1, 2: 1}


def predict_request() -> Any:
    request = protos.PredictRequest()
    request.model_spec.name = "digits"
    request.model_spec.version.value = 1
    request.model_spec.signature_name = "describe"
    request.inputs["index"].dtype = 3
    request.inputs["index"].tensor_shape.dim.add(size=1)
    request.inputs["index"].int_val.append(0)
    return request


async def call(pool: Pool) -> Any:
    return await pool.call(
        "digits",
        1,
        lambda api, timeout_s: api.predict(predict_request(), timeout_s),
        deadline=time.monotonic() + 20,
    )


async def test_a_call_that_one_replica_fails_is_made_on_another() -> None:
    async with running(FakeReplica()) as good, running(FakeReplica()) as bad:
        replicas = [Replica(TensorFlowServing(each.address)) for each in (bad, good)]
        pool = Pool(replicas, calls_per_replica=2)
        await pool.refresh(["digits"])
        assert all(replica.reachable for replica in replicas)
        bad.versions["digits"] = set()
        for _ in range(10):
            await call(pool)
        assert not replicas[0].has("digits", 1)
        assert [replica.in_flight for replica in replicas] == [0, 0]
        await pool.aclose()


async def test_a_connection_that_is_closed_fails_its_calls_and_cancels_no_caller() -> None:
    entered = asyncio.Event()

    async def hang(_request: Any) -> None:
        entered.set()
        await asyncio.Event().wait()

    images = predict_request()
    images.model_spec.signature_name = "serving_default"
    images.inputs["images"].CopyFrom(tensors.to_proto(np.zeros((1, 8, 8, 1), np.uint8)))
    async with running(FakeReplica(before_predict=hang)) as fake:
        api = TensorFlowServing(fake.address)
        asked = asyncio.create_task(api.predict(images, 60.0))
        await entered.wait()
        await api.close()
        for call_of_it in (asked, api.predict(predict_request(), 60.0)):
            with pytest.raises(errors.Unavailable, match=f"the connection to {fake.address} was closed"):
                await call_of_it


class OfTheFuture(FakeReplica):
    """A replica that knows a state which this gateway does not."""

    async def status(self, request: Any) -> Any:
        response = await super().status(request)
        response.model_version_status.add(version=9).state = 99
        return response


async def test_a_state_that_nobody_knows_is_one_of_a_version_and_ends_nothing() -> None:
    async with running(OfTheFuture()) as fake:
        pool = Pool([Replica(TensorFlowServing(fake.address))], calls_per_replica=2)
        await pool.refresh(["digits"])
        assert pool.replicas[0].versions["digits"][9] == VersionStatus("UNKNOWN")
        assert pool.availability("digits") == {1: 1}
        await pool.aclose()


async def test_the_breaker_opens_on_a_replica_that_is_gone_and_closes_when_it_is_back() -> None:
    async with running(FakeReplica()) as fake:
        replica = Replica(TensorFlowServing(fake.address))
        pool = Pool([replica], calls_per_replica=2)
        await pool.refresh(["digits"])
    for _ in range(THRESHOLD):
        with pytest.raises(errors.Unavailable) as caught:
            await call(pool)
        assert caught.value.retry_after_s
    assert places(pool, "digits", 1) == 0
    with pytest.raises(errors.Unavailable, match="no replica that has version 1"):
        await call(pool)
    async with running(FakeReplica(), address=fake.address), asyncio.timeout(60):
        while replica.breaker.failures:
            await pool.refresh(["digits"])
            try:
                await call(pool)
            except errors.Unavailable:
                await asyncio.sleep(0.01)
    assert replica.in_flight == 0
    await pool.aclose()


async def test_a_replica_that_does_not_answer_is_not_reachable() -> None:
    pool = Pool([Replica(TensorFlowServing("127.0.0.1:1"))], calls_per_replica=2)
    await pool.refresh(["digits"])
    assert pool.availability("digits") == {}
    await pool.aclose()


async def test_replicas_are_asked_past_a_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        for name in ("http_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{nobody.getsockname()[1]}")
        for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        async with running(FakeReplica()) as fake:
            pool = Pool([Replica(TensorFlowServing(fake.address))], calls_per_replica=2)
            await pool.refresh(["digits"])
            assert pool.reachable()
            await pool.aclose()


async def test_the_silence_of_a_replica_is_told_once_and_so_is_its_end() -> None:
    now = [0.0]
    async with running(FakeReplica()) as fake:
        address = fake.address
    pool = Pool([Replica(TensorFlowServing(address))], calls_per_replica=2, clock=lambda: now[0])
    with capture_logs() as lines:
        for now[0] in (0.0, 19.0, 20.0, 21.0):
            await pool.refresh(["digits"])
        told = [line for line in lines if "has not said for 20 s what it serves" in line["event"]]
        assert [line["replica"] for line in told] == [address]
        assert "connect" in told[0]["error"]
        async with running(FakeReplica(), address=address), asyncio.timeout(60):
            while not pool.reachable():  # the channel waits a little before it connects again
                await pool.refresh(["digits"])
        assert [line["event"] for line in lines[1:]] == ["a replica says again what it serves"]
    await pool.aclose()


async def test_cancelling_a_call_leaves_the_counters_right() -> None:
    entered = asyncio.Event()

    async def hang(_request: Any) -> None:
        entered.set()
        await asyncio.Event().wait()

    async with running(FakeReplica()) as fake:
        replica = Replica(TensorFlowServing(fake.address))
        pool = Pool([replica], calls_per_replica=2)
        await pool.refresh(["digits"])

        async def wait_for_ever(_api: TensorFlowServing, _timeout_s: float) -> None:
            await hang(None)

        task = asyncio.create_task(pool.call("digits", 1, wait_for_ever, deadline=time.monotonic() + 60))
        await entered.wait()
        assert replica.in_flight == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert replica.in_flight == 0
        assert (replica.breaker, replica.breakers) == (Breaker(), {})
        await pool.aclose()


async def test_errors_of_the_caller_are_not_retried_and_no_fault_of_the_replica() -> None:
    async def refuse(_request: Any) -> None:
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "wrong shape")

    async with running(FakeReplica(before_predict=refuse)) as fake:
        replica = Replica(TensorFlowServing(fake.address))
        pool = Pool([replica], calls_per_replica=2)
        await pool.refresh(["digits"])
        request = predict_request()
        request.model_spec.signature_name = "serving_default"
        request.inputs["images"].CopyFrom(request.inputs["index"])
        with pytest.raises(errors.InvalidInput, match="wrong shape"):
            await pool.call(
                "digits", 1, lambda api, left_s: api.predict(request, left_s), deadline=time.monotonic() + 20
            )
        assert len(fake.batches) == 1
        assert (replica.breaker, replica.breakers) == (Breaker(), {})
        await pool.aclose()

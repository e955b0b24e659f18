"""The limit on what is in progress: pure, and in a gateway that is offered ten times what it can do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from serving.concurrency import ConcurrencyLimit, Progress
from serving.errors import DeadlineExceeded
from tests.support.fake_replica import FakeReplica, running, until
from tests.support.gateways import counted, gateway_over
from tests.support.pictures import encoded, gradient

PNG = {"content-type": "image/png"}


def limit_of(floor: int = 8, ceiling: int = 1000, target_s: float = 1.0) -> ConcurrencyLimit:
    return ConcurrencyLimit(target_s, floor=lambda: floor, ceiling=ceiling)


def test_the_limit_falls_to_what_is_done_in_time_and_grows_back() -> None:
    """Closed loop: a server that does a hundred a second, and as many callers as are let in."""
    found, now = limit_of(), 0.0
    for _ in range(100):
        in_progress = found.limit
        latency_s = in_progress / 100
        now += latency_s
        for _ in range(in_progress):
            found.observe(latency_s, now, in_progress)
    assert 80 <= found.limit <= 110
    for _ in range(2000):  # the server is ten times as fast now
        in_progress = found.limit
        now += 0.1
        for _ in range(in_progress):
            found.observe(in_progress / 1000, now, in_progress)
    assert found.limit > 700


def test_one_slow_batch_cuts_once_and_never_below_the_floor() -> None:
    found = limit_of(floor=64)
    for _ in range(32):
        found.observe(1.5, now=10.0, in_progress=200)
    assert 120 < found.limit < 200
    for second in range(20, 60):
        found.observe(100.0, now=float(100 * second), in_progress=200)
    assert found.limit == 64


def test_a_slow_request_among_few_shuts_out_nobody_later() -> None:
    found = limit_of(floor=8, ceiling=1000)
    found.observe(30.0, now=10.0, in_progress=8)  # the first calls of a version compile, say
    assert found.limit == 500
    found.observe(30.0, now=11.0, in_progress=9)
    assert found.limit == 8


def test_a_limit_that_is_not_used_does_not_grow() -> None:
    found = limit_of(floor=8)
    found.observe(2.0, now=1.0, in_progress=100)
    before = found.limit
    for _ in range(10_000):
        found.observe(0.01, now=2.0, in_progress=1)
    assert found.limit == before


def test_the_limit_grows_by_one_in_the_time_of_one_request_once_half_of_it_is_used() -> None:
    found = limit_of()
    for in_progress, limit in ((240, 500), (300, 501), (500, 502)):
        for _ in range(502):
            found.observe(0.5, now=1.0, in_progress=in_progress)
        assert found.limit == limit


def test_it_grows_from_what_is_let_in_and_not_from_what_was_learned_below_that() -> None:
    found = limit_of(floor=64)
    for second in range(10):
        found.observe(100.0, now=1000.0 * second, in_progress=200)
    for _ in range(70):
        found.observe(0.5, now=1e6, in_progress=64)
    assert found.limit == 65


def test_it_is_never_beyond_its_ceiling() -> None:
    assert limit_of(floor=2000, ceiling=1000).limit == 1000


@pytest.mark.parametrize(
    ("latency_s", "in_progress", "limit"),
    [(1.01, 500, 450), (1.25, 500, 400), (100.0, 500, 250), (2.0, 100, 50)],
)
def test_it_falls_to_what_gets_done_in_time_and_neither_by_little_nor_to_nothing(
    latency_s: float, in_progress: int, limit: int
) -> None:
    found = limit_of()
    found.observe(latency_s, now=1.0, in_progress=in_progress)
    assert found.limit == limit


@pytest.mark.parametrize(("target_s", "latency_s", "pause_s"), [(1.0, 2.0, 2.0), (0.001, 0.002, 0.05)])
def test_it_falls_once_in_the_time_of_one_request(target_s: float, latency_s: float, pause_s: float) -> None:
    found = limit_of(target_s=target_s)
    for after_s, limit in ((0.0, 250), (0.9 * pause_s, 250), (1.1 * pause_s, 125)):
        found.observe(latency_s, now=10.0 + after_s, in_progress=500)
        assert found.limit == limit


class Clocked:
    """What is in progress of some models, at times that the test sets."""

    def __init__(self, floor: int = 8) -> None:
        self.now = 100.0
        self.progress = Progress(lambda: limit_of(floor=floor), 1000, lambda: self.now)

    def answer(
        self, model: str, versions: Sequence[int | None], took_s: float, error: Exception | None = None
    ) -> None:
        """One request by each of the versions, all at once; None: no version was found for it."""
        with ExitStack() as stack:
            for version in versions:
                stack.enter_context(self.progress.work(model, "caller")).by(version)
            self.now += took_s
            if error is not None:
                raise error


def test_a_slow_model_lowers_no_other_models_limit() -> None:
    found = Clocked()
    before = found.progress.limit_of("quick")
    for _ in range(20):
        found.answer("slow", 20 * [1], took_s=3.0)
    assert found.progress.limit_of("slow") == 8
    assert found.progress.limit_of("quick") == before
    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(found.progress.work("slow", "flood"))
        assert not found.progress.fits("slow", "flood")
        assert found.progress.fits("slow", "calm"), "who holds less than an equal share is let in on top"
        assert found.progress.fits("quick", "flood")
        assert (found.progress.total, found.progress.of("slow"), found.progress.of("quick")) == (8, 8, 0)
    assert found.progress.total == 0


def test_a_slow_candidate_with_few_requests_lowers_not_the_limit_of_the_stable_version() -> None:
    found = Clocked()
    before = found.progress.limit_of("digits")
    found.answer("digits", 100 * [1] + 8 * [2], took_s=0.5)
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(found.progress.work("digits", "caller"))
        found.answer("digits", 8 * [2], took_s=3.0)
        assert found.progress.limit_of("digits") == before
        found.answer("digits", 9 * [2], took_s=3.0)
        assert found.progress.limit_of("digits") < before


def test_a_deadline_lowers_the_limit_and_what_met_no_version_or_another_error_does_not() -> None:
    found = Clocked()
    before = found.progress.limit_of("digits")
    with pytest.raises(ValueError, match="wrong"):
        found.answer("digits", 20 * [1], took_s=30.0, error=ValueError("wrong"))
    with pytest.raises(DeadlineExceeded):
        found.answer("digits", 20 * [None], took_s=30.0, error=DeadlineExceeded("nobody was there"))
    assert found.progress.limit_of("digits") == before
    with pytest.raises(DeadlineExceeded):
        found.answer("digits", 20 * [1], took_s=30.0, error=DeadlineExceeded("slow"))
    assert found.progress.limit_of("digits") < before


def test_a_request_that_another_version_answers_in_the_end_counts_as_that_ones() -> None:
    found = Clocked(floor=1)
    before = found.progress.limit_of("digits")
    with found.progress.work("digits", "a") as moves, found.progress.work("digits", "b") as stays:
        for version in (1, 1, 2):
            moves.by(version)
        stays.by(1)
        found.now += 5.0
    assert found.progress.limit_of("digits") == before, "each was the only one of its version"


def test_of_those_that_end_the_first_is_one_of_those_in_progress() -> None:
    found = Clocked(floor=1)
    found.answer("digits", 10 * [1], took_s=2.0)
    assert found.progress.limit_of("digits") == 5


def test_what_has_ended_is_none_of_those_that_are_alike() -> None:
    found = Clocked()
    before = found.progress.limit_of("digits")
    for _ in range(20):
        found.answer("digits", [1], took_s=30.0)
    assert found.progress.limit_of("digits") == before


async def test_a_model_that_is_slower_than_the_target_refuses_no_other_models_callers() -> None:
    """Of both more are asked at once than two full batches, to which the slow one's limit falls."""

    async def slow(request: Any) -> None:
        if request.model_spec.name == "slow":
            await asyncio.sleep(1.0)

    picture = encoded(gradient(), "PNG")
    fake = FakeReplica(versions={"quick": {1}, "slow": {1}}, before_predict=slow)
    async with (
        running(fake),
        gateway_over(
            fake, models=("quick", "slow"), max_batch=4, calls_per_replica=4, target_latency_s=0.5
        ) as (up, client),
    ):

        async def post(model: str) -> int:
            answer = await client.post(f"/v1/models/{model}:classify", content=picture, headers=PNG)
            if answer.status_code == 503:
                assert f'for model \\"{model}\\" are in progress' in answer.text
            return answer.status_code

        assert await asyncio.gather(*(post("slow") for _ in range(12))) == 12 * [200]
        assert counted(up, "sluice_requests_in_progress_limit", model="slow") == 8
        again = [asyncio.create_task(post("slow")) for _ in range(12)]
        await until(lambda: counted(up, "sluice_requests_in_progress", model="slow") == 8)
        assert await asyncio.gather(*(post("quick") for _ in range(24))) == 24 * [200]
        assert sorted(await asyncio.gather(*again)) == 8 * [200] + 4 * [503]
        assert counted(up, "sluice_requests_in_progress_limit", model="quick") > 24


async def test_ten_times_overload_is_refused_and_what_is_admitted_is_answered_in_time() -> None:
    async def slow(_request: Any) -> None:
        await asyncio.sleep(0.02)

    picture = encoded(gradient(), "PNG")
    statuses: dict[int, int] = {}

    async def post(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/models/digits:classify", content=picture, headers=PNG)
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        if answer.status_code == 503:
            assert answer.headers["retry-after"] == "1"
            assert answer.json()["retryable"]

    async with (
        running(FakeReplica(before_predict=slow)) as fake,
        gateway_over(fake, max_batch=2, calls_per_replica=1, target_latency_s=0.1) as (up, client),
    ):
        for _ in range(4):
            await asyncio.gather(*(post(client) for _ in range(100)))
        assert set(statuses) == {200, 503}
        assert counted(up, "sluice_requests_refused_total", reason="progress") <= statuses[503]
        assert statuses[503] > statuses[200]
        assert up.gateway.admission.in_progress == 0
        await post(client)
        assert statuses[200] >= 4 * 4


async def test_a_refusal_of_a_small_body_is_quick_and_keeps_the_connection() -> None:
    """Two requests on one connection; the first is refused before its body has come."""
    hold = asyncio.Event()

    async def wait(_request: Any) -> None:
        await hold.wait()

    picture = encoded(gradient(), "PNG")
    head = b"POST /v1/models/digits:classify HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\n"
    head += b"content-length: %d\r\n\r\n" % len(picture)
    async with (
        running(FakeReplica(before_predict=wait)) as fake,
        gateway_over(fake, max_in_flight=1) as (up, client),
    ):
        first = asyncio.create_task(client.post("/v1/models/digits:classify", content=picture, headers=PNG))
        await until(lambda: up.gateway.admission.in_flight == 1)
        reader, writer = await asyncio.open_connection("127.0.0.1", int(up.http_url.rpartition(":")[2]))
        writer.write(head)
        async with asyncio.timeout(20):
            refused = await reader.readuntil(b"\r\n\r\n")
            assert refused.startswith(b"HTTP/1.1 503")
            assert b"connection: close" not in refused
            await reader.readuntil(b"}")
            hold.set()
            assert (await first).status_code == 200
            writer.write(picture)
            writer.write(head + picture)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()

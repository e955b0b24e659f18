"""The HTTP API at its limits: full, late, left by its client, without replicas, shutting down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.support.fake_replica import TIME_LEFT_S, FakeReplica, running, until
from tests.support.gateways import counted, gateway_over, gateway_to_end
from tests.support.http import PATH, PNG, grey_png, refused
from tests.support.processes import started


@pytest.fixture
async def replica() -> AsyncIterator[FakeReplica]:
    async with running(FakeReplica()) as fake:
        yield fake


async def test_too_many_images_are_refused(replica: FakeReplica) -> None:
    async with gateway_over(replica, max_images=3) as (_, client):
        files = [("images", (f"{n}.png", grey_png(n), "image/png")) for n in range(4)]
        detail = refused(await client.post(PATH, files=files), 400, "invalid-input")
        assert "Maximum number of files is 3" in detail


async def test_connections_are_bounded_by_what_may_be_had_and_not_by_what_the_shell_gave(
    replica: FakeReplica,
) -> None:
    arguments = ["gateway", f"--replica={replica.address}", "--model=digits"]
    async with started(arguments, under=["prlimit", "--nofile=64:1024"]) as gateway:
        url = httpx.URL(gateway.http_url)
        assert url.port is not None
        connections = [await asyncio.open_connection(url.host, url.port) for _ in range(200)]
        for _, writer in connections:
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(60):
            answers = [await reader.readline() for reader, _ in connections]
        for _, writer in connections:
            writer.close()
    assert set(answers) == {b"HTTP/1.1 200 OK\r\n"}


async def send_raw(url: httpx.URL, head: str, chunks: list[bytes]) -> tuple[bytes, int]:
    """Send a request by hand, stopping as soon as an answer comes; the answer, and the chunks sent."""
    assert url.port is not None
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(head.encode() + b"\r\n")
    answer = asyncio.create_task(reader.read())
    sent = 0
    try:
        for chunk in chunks:
            await asyncio.wait([answer], timeout=0)
            if reader.at_eof() or answer.done():
                break
            writer.write(chunk)
            await writer.drain()
            sent += 1
    except ConnectionError:
        pass
    found = await answer
    writer.close()
    return found, sent


async def test_a_body_over_the_limit_is_refused_from_its_claimed_length(replica: FakeReplica) -> None:
    async with gateway_over(replica, max_body_bytes=10_000) as (_, client):
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 99999999999\r\n"
        )
        answer, _ = await send_raw(client.base_url, head, [])
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"99,999,999,999 bytes; at most 10,000" in answer


async def test_a_body_over_the_limit_is_refused_while_it_comes(replica: FakeReplica) -> None:
    """Chunked, so that no length is claimed, and without an end: only a refusal can end it."""
    async with gateway_over(replica, max_body_bytes=100_000) as (running_gateway, client):
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n"
        chunk = b"2710\r\n" + b"x" * 10_000 + b"\r\n"
        answer, _ = await send_raw(client.base_url, head, [chunk] * 11)
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"over 100,000 bytes" in answer
        assert running_gateway.gateway.admission.in_flight == 0
        assert (await client.post(PATH, content=grey_png(0), headers=PNG)).status_code == 200


async def test_a_full_gateway_refuses_at_once(replica: FakeReplica) -> None:
    entered, gate = asyncio.Event(), asyncio.Event()

    async def wait(_request: Any) -> None:
        entered.set()
        await gate.wait()

    async with gateway_over(replica, max_in_flight=1) as (running_gateway, client):
        replica.before_predict = wait
        first = asyncio.create_task(client.post(PATH, content=grey_png(0), headers=PNG))
        await entered.wait()
        answer = await client.post(PATH, content=grey_png(0), headers=PNG)
        refused(answer, 503, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        gate.set()
        assert (await first).status_code == 200
        assert counted(running_gateway, "sluice_requests_refused_total", reason="requests") == 1


async def test_what_fills_all_replicas_twice_may_be_in_progress_from_the_start(replica: FakeReplica) -> None:
    async with (
        running(FakeReplica()) as other,
        gateway_over(replica, other, max_batch=40, max_in_flight=200) as (up, _),
    ):
        assert up.gateway.admission.progress_of("digits") == (0, 160)


async def test_bytes_in_flight_are_bounded(replica: FakeReplica) -> None:
    gate, entered = asyncio.Event(), asyncio.Event()

    async def wait(_request: Any) -> None:
        entered.set()
        await gate.wait()

    replica.before_predict = wait
    picture = grey_png(0)
    room = 2 * len(picture) - 1
    async with gateway_over(replica, max_in_flight_bytes=room) as (running_gateway, client):
        first = asyncio.create_task(client.post(PATH, content=picture, headers=PNG))
        await entered.wait()
        refused(await client.post(PATH, content=picture, headers=PNG), 503, "overloaded")
        assert counted(running_gateway, "sluice_requests_refused_total", reason="bytes") == 1
        gate.set()
        assert (await first).status_code == 200
        assert (await client.post(PATH, content=picture, headers=PNG)).status_code == 200


async def test_a_body_for_which_there_is_never_room_is_too_large(replica: FakeReplica) -> None:
    """Whoever is told to come again would do so for ever."""
    async with gateway_over(replica, max_in_flight_bytes=1000) as (running_gateway, client):
        detail = refused(await client.post(PATH, content=b"x" * 2000, headers=PNG), 413, "too-large")
        assert "over 1,000 bytes, which is the most that this gateway holds at once" in detail
        assert (await client.post(PATH, content=grey_png(0), headers=PNG)).status_code == 200
        assert running_gateway.gateway.admission.held_bytes == 0


async def test_a_deadline_is_kept(replica: FakeReplica) -> None:
    async def hang(_request: Any) -> None:
        await asyncio.Event().wait()

    async with gateway_over(replica) as (running_gateway, client):
        replica.before_predict = hang
        headers = PNG | {"x-request-timeout": "0.2"}
        refused(await client.post(PATH, content=grey_png(0), headers=headers), 504, "deadline-exceeded")
        assert running_gateway.gateway.admission.in_flight == 0
        for wrong in ("soon", "0", "-1", "nan", "inf"):
            answer = await client.post(PATH, content=grey_png(0), headers=PNG | {"x-request-timeout": wrong})
            assert "X-Request-Timeout" in refused(answer, 400, "invalid-input")


async def test_a_client_that_leaves_gives_back_its_room(replica: FakeReplica) -> None:
    entered = asyncio.Event()

    async def hang(_request: Any) -> None:
        entered.set()
        await asyncio.Event().wait()

    async with gateway_over(replica) as (running_gateway, client):
        replica.before_predict = hang
        url = client.base_url
        assert url.port is not None
        data = grey_png(0)
        _, writer = await asyncio.open_connection(url.host, url.port)
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(data)}\r\n"
        )
        writer.write(head.encode() + b"X-Request-Timeout: 0.3\r\n\r\n" + data)
        await entered.wait()
        writer.close()
        await until(lambda: running_gateway.gateway.admission.in_flight == 0)


async def test_without_a_replica_the_answer_is_503_with_when_to_come_back() -> None:
    async with (
        running(FakeReplica()) as fake,
        gateway_over(fake, status_interval_s=3600.0) as (_, client),
    ):
        assert (await client.get("/readyz")).status_code == 200
    async with gateway_over(fake, wait=False) as (_, client):
        answer = await client.post(PATH, content=grey_png(0), headers=PNG)
        refused(answer, 503, "unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        assert (await client.get("/readyz")).json() == {"ready": False, "missing": ["digits"]}
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/healthz")).json() == {"status": "ok"}


async def test_a_port_that_is_taken_is_a_clear_error(replica: FakeReplica) -> None:
    async with gateway_over(replica) as (running_gateway, client):
        taken_http, taken_grpc = client.base_url.port, int(running_gateway.grpc_address.split(":")[-1])
        for ports in ({"http_port": taken_http}, {"grpc_port": taken_grpc}):
            with pytest.raises(Exception, match=r"cannot listen on 127\.0\.0\.1") as caught:
                async with gateway_over(replica, **ports):
                    pass
            assert "Traceback" not in str(caught.value)


class Held:
    """Holds what a replica is asked until it may answer."""

    def __init__(self) -> None:
        self.entered, self.gate = asyncio.Event(), asyncio.Event()

    async def __call__(self, _request: Any) -> None:
        self.entered.set()
        await self.gate.wait()


async def test_one_who_waits_no_longer_takes_the_others_of_its_batch_nothing(replica: FakeReplica) -> None:
    """A call to a replica has as long as the most patient of those whose images are in it."""
    held, left_s = [Held(), Held()], list[float | None]()

    async def hold(request: Any) -> None:
        left_s.append(TIME_LEFT_S.get())
        await held[len(replica.batches) - 1](request)

    replica.before_predict = hold
    async with gateway_over(replica, calls_per_replica=1) as (up, client):

        def ask(**headers: str) -> asyncio.Task[httpx.Response]:
            return asyncio.create_task(client.post(PATH, content=grey_png(0), headers=PNG | headers))

        first = ask()
        await held[0].entered.wait()
        hasty, patient = ask(**{"x-request-timeout": "2"}), ask()
        await until(lambda: up.gateway.batcher.depth() == 2)
        held[0].gate.set()
        await held[1].entered.wait()
        assert replica.batches == [1, 2]
        assert left_s[-1] is not None
        assert left_s[-1] > 5.0
        assert (await hasty).status_code == 504
        held[1].gate.set()
        assert ((await first).status_code, (await patient).status_code) == (200, 200)


async def test_draining_asks_clients_to_leave_and_answers_what_is_in_flight(replica: FakeReplica) -> None:
    held = replica.before_predict = Held()
    async with (
        gateway_to_end(replica) as (up, leave, ended),
        httpx.AsyncClient(base_url=up.http_url, timeout=60) as client,
    ):
        in_flight = asyncio.create_task(client.post(PATH, content=grey_png(0), headers=PNG))
        await held.entered.wait()
        leave.set()
        await until(lambda: up.gateway.draining)
        await asyncio.sleep(1.5)  # more than uvicorn gives by itself
        assert not ended.done()
        held.gate.set()
        answer = await in_flight
        assert answer.status_code == 200
        assert answer.headers["connection"] == "close"
        await ended
        with pytest.raises(httpx.TransportError):
            await client.get("/healthz")


async def test_draining_ends_when_its_time_is_over_and_tells_who_waits_to_come_back(
    replica: FakeReplica,
) -> None:
    held = replica.before_predict = Held()
    async with (
        gateway_to_end(replica, drain_timeout_s=0.1) as (up, leave, ended),
        httpx.AsyncClient(base_url=up.http_url, timeout=60) as client,
        asyncio.timeout(20),
    ):
        in_flight = asyncio.create_task(client.post(PATH, content=grey_png(0), headers=PNG))
        await held.entered.wait()
        leave.set()
        await ended
        answer = await in_flight
    assert "shut down before it had answered" in refused(answer, 503, "unavailable")
    assert answer.headers["retry-after"] == "1"

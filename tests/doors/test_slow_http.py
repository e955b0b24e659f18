"""Clients who are slow or idle: how long they are waited for, and that others do not notice."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from typing import Any

import httpx

from serving.main import Running
from serving.rest.server import listen
from tests.doors.replica import ScriptedReplica
from tests.doors.wire import CLOSE, HEAD, MIB, classified, exchange, port_of, statuses
from tests.support.fake_replica import until
from tests.support.gateways import gateway_over
from tests.support.http import grey_png


async def test_slow_headers_time_out_and_others_are_served(
    strict: tuple[Running, httpx.AsyncClient],
) -> None:
    running, client = strict
    slow = asyncio.create_task(exchange(port_of(running), HEAD))
    assert await classified(client)
    answer = await slow
    assert statuses(answer) == [408]
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert body["detail"] == "the request's headers took longer than 1 s"
    assert await exchange(port_of(running), b"") == b""  # nothing asked, nothing said


async def test_the_clock_of_headers_starts_anew_with_each_request(
    strict: tuple[Running, httpx.AsyncClient],
) -> None:
    running, _ = strict
    ping = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    answers = await exchange(port_of(running), ping + ping + b"GET /healthz HTTP/1.1\r\nHost")
    assert statuses(answers) == [200, 200, 408]


async def test_idle_connections_are_kept_as_long_as_is_set(replica: ScriptedReplica) -> None:
    ping = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"

    async def asked(running: Running) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(running))
        writer.write(ping)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        return reader, writer

    async with (
        gateway_over(replica, idle_timeout_s=60) as (patient, _),
        gateway_over(replica, idle_timeout_s=0.1) as (curt, _),
    ):
        kept, kept_writer = await asked(patient)
        dropped, dropped_writer = await asked(curt)
        async with asyncio.timeout(60):
            await dropped.read()  # to its end
        kept_writer.write(ping + ping.replace(b"Host: x\r\n", b"Host: x\r\n" + CLOSE))
        assert (await kept.read()).count(b"HTTP/1.1 200") == 2
        kept_writer.close()
        dropped_writer.close()


async def test_a_connection_is_idle_once_the_rest_of_a_refused_body_has_come(
    strict: tuple[Running, httpx.AsyncClient],
) -> None:
    running, _ = strict
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(running))
    writer.write(HEAD.replace(b"image/png", b"x/y") + b"Content-Length: 4\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 415")
    writer.write(b"rest")
    await writer.drain()
    assert await exchange(port_of(running), b"") == b""  # as long as headers may take
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"\r\n")
    async with asyncio.timeout(60):
        assert b"HTTP/1.1 200" in await reader.read()
    writer.close()


async def test_the_rest_of_a_refused_body_is_waited_for_as_long_as_headers_are(
    replica: ScriptedReplica,
) -> None:
    async with gateway_over(replica, header_timeout_s=0.2, idle_timeout_s=3600) as (running, _):
        started = asyncio.get_running_loop().time()
        head = HEAD.replace(b"image/png", b"x/y") + b"Content-Length: 1000\r\n\r\n"
        assert statuses(await exchange(port_of(running), head + b"some")) == [415]
        assert asyncio.get_running_loop().time() - started < 30


async def test_a_connection_is_closed_that_stays_idle_behind_the_rest_of_a_refused_body(
    replica: ScriptedReplica,
) -> None:
    async with gateway_over(replica, header_timeout_s=3600, idle_timeout_s=0.2) as (running, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(running))
        writer.write(HEAD.replace(b"image/png", b"x/y") + b"Content-Length: 4\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 415")
        writer.write(b"rest")
        async with asyncio.timeout(30):
            await reader.read()  # to its end
        writer.close()


async def test_a_request_may_take_longer_than_a_connection_may_be_idle(replica: ScriptedReplica) -> None:
    async def take_long(_request: Any) -> None:
        await asyncio.sleep(1.6)

    async with gateway_over(replica, idle_timeout_s=1) as (running, _):
        replica.before_predict = take_long
        body = grey_png(200)
        request = b"Content-Length: %d\r\n\r\n" % len(body) + body
        sent = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(running))
        async with asyncio.timeout(60):
            writer.write(sent)
            head = await reader.readuntil(b"\r\n\r\n")  # its answer is here, and it is idle
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
            writer.write(HEAD + CLOSE + request)
            assert statuses(await reader.read()) == [200]
        writer.close()


async def test_an_old_connection_is_closed_behind_an_answer(replica: ScriptedReplica) -> None:
    async with gateway_over(replica, connection_age_s=0.1) as (running, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(running))
        async with asyncio.timeout(60):
            head = b""
            while b"connection: close" not in head.lower():
                writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                body = await reader.readexactly(
                    int(head.lower().partition(b"content-length: ")[2].split()[0])
                )
            assert json.loads(body)
            assert await reader.read() == b""
        writer.close()


async def test_a_slow_body_times_out(strict: tuple[Running, httpx.AsyncClient]) -> None:
    running, client = strict
    slow = asyncio.create_task(exchange(port_of(running), HEAD + b"Content-Length: 1000\r\n\r\nab"))
    assert await classified(client)
    answer = await slow
    assert statuses(answer) == [504]
    assert b"slower than 65536 bytes a second" in answer
    assert running.gateway.admission.in_flight == 0


async def test_a_body_that_comes_fast_enough_may_take_longer_than_the_grace(replica: ScriptedReplica) -> None:
    async with gateway_over(replica, body_grace_s=0.05, min_body_bytes_per_s=1) as (running, _):
        body = grey_png(200)
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(running))
        writer.write(HEAD + CLOSE + b"Content-Length: %d\r\n\r\n" % len(body) + body[:-1])
        await asyncio.sleep(0.2)  # what has come stands for a minute
        writer.write(body[-1:])
        async with asyncio.timeout(60):
            assert statuses(await reader.read()) == [200]
        writer.close()


async def test_feedback_and_orders_are_small_and_in_time(strict: tuple[Running, httpx.AsyncClient]) -> None:
    """Their routes read the body before they know whose it is."""
    running, client = strict
    for path in ("/v1/feedback", "/v1/rollouts/digits"):
        headers = {"content-type": "application/json"}
        large = await client.post(path, content=b" " * 2 * MIB, headers=headers)
        assert large.status_code == 413, large.text
        assert large.json()["detail"] == "the body has over 1,048,576 bytes; at most 1,048,576 are allowed"
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode()
        slow = await exchange(port_of(running), head + b"Content-Length: 1000\r\n\r\n{")
        assert statuses(slow) == [504]
        assert b"slower than 65536 bytes a second" in slow


async def test_a_client_that_stops_reading_is_cut_off() -> None:
    """Its answer must not be kept for it for ever: neither the memory, nor its place among the requests."""
    ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * 32 * MIB)
        try:
            await writer.drain()
        except OSError:
            ended.set_result(True)
        else:
            ended.set_result(False)
        writer.close()

    listener = listen("127.0.0.1", 0, unread_timeout_s=0.5)
    server = await asyncio.start_server(answer, sock=listener)
    # Paused at once by its small limit: from then on nothing is read from the socket.
    _, writer = await asyncio.open_connection(*listener.getsockname(), limit=1)
    async with asyncio.timeout(60):
        assert await ended
    writer.close()
    server.close()


class Unreading:
    """A client that asks for much at once, and reads none of it until it is told to."""

    def __init__(self, port: int) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.setblocking(False)
        self._port = port

    async def ask(self) -> None:
        """Send more requests than the kernel has room for answers."""
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self.socket, ("127.0.0.1", self._port))
        await loop.sock_sendall(self.socket, 400 * b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")

    def is_cut_off(self) -> bool:
        """Whether the gateway has reset the connection."""
        return self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET


async def test_who_reads_too_slowly_is_cut_off(replica: ScriptedReplica) -> None:
    """Within the rate that holds for bodies, long before the kernel gives it up."""
    async with gateway_over(replica, body_grace_s=0.2, min_body_bytes_per_s=2**30) as (running, client):
        slow = Unreading(port_of(running))
        await slow.ask()
        await until(slow.is_cut_off, 20)
        assert await classified(client)
        slow.socket.close()


async def test_answers_that_wait_to_be_read_are_bounded(replica: ScriptedReplica) -> None:
    """Those who have read nothing for longest are cut off, and the latest may still read."""
    async with gateway_over(replica, max_in_flight_bytes=64 * 2**10, body_grace_s=3600) as (running, client):
        slow = [Unreading(port_of(running)) for _ in range(4)]
        for earlier, each in zip([None, *slow], slow, strict=False):
            await each.ask()
            if earlier is not None:
                await until(earlier.is_cut_off, 20)
        assert await classified(client)
        assert not slow[-1].is_cut_off()
        last = slow[-1].socket
        assert (await asyncio.get_running_loop().sock_recv(last, 12)) == b"HTTP/1.1 200"
        for each in slow:
            each.socket.close()


async def test_five_hundred_slow_connections_hurt_nobody(
    gateway: tuple[Running, httpx.AsyncClient],
) -> None:
    """Five hundred clients send one byte every while; good ones go on without a failure."""
    running, client = gateway
    port = port_of(running)
    stopped = asyncio.Event()
    opened = 0

    async def slow(head: bytes) -> None:
        nonlocal opened
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        opened += 1
        for byte in head:
            writer.write(bytes((byte,)))
            try:
                await asyncio.wait_for(stopped.wait(), 0.25)
            except TimeoutError:
                continue
            break
        writer.close()

    async with asyncio.TaskGroup() as tasks:
        for index in range(500):
            tasks.create_task(slow(HEAD if index % 2 else b"GET /v1/models HTTP/1.1\r\nX: " + b"y" * 99))
        await until(lambda: opened == 500)
        results = []
        for _ in range(25):
            results += await asyncio.gather(*(classified(client) for _ in range(8)))
        stopped.set()
    assert results == [True] * 200

"""What hostile and broken HTTP clients send, and that others do not notice."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator

import httpx
import psutil
import pytest
from starlette.types import Receive, Scope, Send

from serving.main import Running
from serving.rest.server import HttpServer, listen
from serving.settings import Settings
from tests.doors.replica import ScriptedReplica
from tests.doors.wire import exchange, port_of, statuses
from tests.support.fake_replica import until
from tests.support.gateways import gateway_over
from tests.support.http import grey_png

PATH = "/v1/models/digits:classify"
PNG = {"content-type": "image/png"}
HEAD = b"POST " + PATH.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
CLOSE = b"Connection: close\r\n"
MIB = 2**20


@pytest.fixture
async def strict(replica: ScriptedReplica) -> AsyncIterator[tuple[Running, httpx.AsyncClient]]:
    """A gateway with little patience and small limits."""
    async with gateway_over(
        replica, header_timeout_s=1, body_grace_s=1, max_body_bytes=MIB, min_body_bytes_per_s=2**16
    ) as both:
        yield both


async def classified(client: httpx.AsyncClient) -> bool:
    answer = await client.post(PATH, content=grey_png(200), headers=PNG)
    assert answer.status_code == 200, answer.text
    return bool(answer.json()["results"][0]["classes"][0]["label"] == "class-7")


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
        assert large.json()["detail"] == "the body has over 1,048,576 bytes; at most 1,048,576 are taken"
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode()
        slow = await exchange(port_of(running), head + b"Content-Length: 1000\r\n\r\n{")
        assert statuses(slow) == [504]
        assert b"slower than 65536 bytes a second" in slow


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"label": "\xff"}', "the body is not JSON: 'utf-8' codec can't decode byte 0xff in position 11"),
        (b"[" * 100_000, "the body is not JSON: maximum recursion depth exceeded"),
        (b"{", "the body is not JSON: Expecting property name"),
    ],
)
async def test_feedback_that_is_no_json_is_told_as_that(
    client: httpx.AsyncClient, body: bytes, says: str
) -> None:
    answer = await client.post("/v1/feedback", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith(says)


async def test_a_chunked_body_without_end_is_cut(strict: tuple[Running, httpx.AsyncClient]) -> None:
    running, client = strict
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(running))
    writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + b"x" * 2**16 + b"\r\n"

    async def send_for_ever() -> None:
        while True:
            writer.write(chunk)
            await writer.drain()

    sender = asyncio.ensure_future(send_for_ever())
    async with asyncio.timeout(60):
        status = await reader.readline()
    sender.cancel()
    writer.close()
    assert status.startswith(b"HTTP/1.1 413")
    assert await classified(client)


async def test_a_form_of_ten_thousand_parts_is_refused(client: httpx.AsyncClient) -> None:
    for what, disposition in (("files", b'name="i"; filename="x"'), ("fields", b'name="i"')):
        part = b"--b\r\nContent-Disposition: form-data; " + disposition + b"\r\n\r\nx\r\n"
        headers = {"content-type": "multipart/form-data; boundary=b"}
        answer = await client.post(PATH, content=part * 10_000 + b"--b--\r\n", headers=headers)
        assert answer.status_code == 400
        assert f"Too many {what}" in answer.json()["detail"]


async def test_a_gzip_bomb_is_refused_with_memory_flat(strict: tuple[Running, httpx.AsyncClient]) -> None:
    _, client = strict
    bomb = gzip.compress(b"\0" * (100 * MIB), 1)
    process = psutil.Process()
    before = process.memory_info().rss
    headers = {**PNG, "content-encoding": "gzip"}
    answer = await client.post(PATH, content=bomb, headers=headers)
    assert answer.status_code == 413
    assert process.memory_info().rss - before < 64 * MIB


@pytest.mark.parametrize(
    "name",
    ["..%2f..%2fetc%2fpasswd", "%00", "a%00b", "%2e%2e", "x" * 10_000, "%ff%fe", "digits%20", "%F0%9F%92%A9"],
)
@pytest.mark.parametrize(
    "path", ["/v1/models/{}:classify", "/v1/models/{}:predict", "/v1/models/{}", "/v2/models/{}/infer"]
)
async def test_tricks_in_names_are_names(client: httpx.AsyncClient, name: str, path: str) -> None:
    method = "GET" if path.endswith("}") else "POST"
    url = httpx.URL(str(client.base_url) + path.format(name))
    answer = await client.request(method, url, json={"instances": [1], "inputs": [], "examples": [{}]})
    assert answer.status_code == 404, answer.text
    assert len(answer.content) < 8192
    answer.json()


SMUGGLED = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcde" + SMUGGLED,
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
        HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n" + SMUGGLED,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5;a\nabcde\n0\n\n" + SMUGGLED,
        HEAD + b"Content-Length: -5\r\n\r\nabcde" + SMUGGLED,
        HEAD + b"Content-Length: 5, 5\r\n\r\nabcde" + SMUGGLED,
        HEAD + b"Content-Length: +5\r\n\r\nabcde" + SMUGGLED,
        HEAD + b"X: a\r\n Content-Length: 99\r\n\r\n" + SMUGGLED,
        HEAD + b"X\0: a\r\n\r\n" + SMUGGLED,
        b"GET /v1/models HTTP/9.9\r\nHost: x\r\n\r\n" + SMUGGLED,
        b"NONSENSE\r\n\r\n" + SMUGGLED,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64,
    ],
)
async def test_ambiguous_requests_are_refused_and_the_connection_closed(
    gateway: tuple[Running, httpx.AsyncClient], sent: bytes
) -> None:
    running, client = gateway
    answers = await exchange(port_of(running), sent)
    found = statuses(answers)
    assert found, answers
    assert 200 not in found, answers
    assert found[-1] == 400, answers
    assert await classified(client)


async def test_repeated_headers_are_harmless(gateway: tuple[Running, httpx.AsyncClient]) -> None:
    running, _ = gateway
    body = grey_png(200)
    length = b"Content-Length: %d\r\n" % len(body)
    repeated = (
        b"X-Request-ID: a\r\nX-Request-ID: b\r\nContent-Type: text/plain\r\nAccept: */*\r\nAccept: x\r\n"
    )
    answers = await exchange(port_of(running), HEAD + repeated + length + CLOSE + b"\r\n" + body)
    assert statuses(answers) == [200]
    assert answers.count(b"x-request-id: a\r\n") == 1


async def test_blanks_around_a_header_are_none_of_it(gateway: tuple[Running, httpx.AsyncClient]) -> None:
    running, _ = gateway
    body = grey_png(200)
    headers = b"X-Request-ID: \t job-7 \t\r\nX-Request-Timeout:20 \r\nContent-Length: %d \r\n" % len(body)
    answers = await exchange(port_of(running), HEAD + headers + CLOSE + b"\r\n" + body)
    assert statuses(answers) == [200]
    assert b"x-request-id: job-7\r\n" in answers


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n" + b"X: a\r\n" * 20_000 + b"\r\n",
        b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 300_000,
    ],
)
async def test_large_heads_are_refused(gateway: tuple[Running, httpx.AsyncClient], head: bytes) -> None:
    running, client = gateway
    answers = await exchange(port_of(running), head)
    assert statuses(answers) == [431]
    assert b"over 65,536 bytes" in answers
    assert await classified(client)


async def test_trailers_do_not_become_headers() -> None:
    async def tell_headers(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["more_body"]:
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": repr(scope["headers"]).encode()})

    listener = listen("127.0.0.1", 0)
    server = HttpServer(tell_headers, Settings(), None)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    chunked = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: X-Api-Key\r\n"
    body = b"3\r\nabc\r\n0\r\nX-Api-Key: a\r\nConnection: keep-alive\r\n\r\n"
    following = b"GET / HTTP/1.1\r\nX-Api-Key: b\r\n" + CLOSE + b"\r\n"
    answers = await exchange(listener.getsockname()[1], chunked + b"\r\n" + body + following)
    server.should_exit = True
    await serving
    assert statuses(answers) == [200, 200]
    assert b"(b'trailer', b'X-Api-Key')]" in answers
    assert b"[(b'x-api-key', b'b'), (b'connection', b'close')]" in answers


@pytest.mark.parametrize(
    "sent",
    [b"0\r\nX: " + b"a" * MIB, b"0\r\n" + b"X: a\r\n" * 200_000, b"1;" + b"a" * MIB],
    ids=("long", "many", "of-a-chunk"),
)
async def test_trailers_without_end_are_refused(
    strict: tuple[Running, httpx.AsyncClient], sent: bytes
) -> None:
    running, client = strict
    answers = await exchange(port_of(running), HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n" + sent)
    assert statuses(answers) == [431]
    assert b"the trailers, or the extensions of a chunk, are over 65,536 bytes" in answers
    assert running.gateway.admission.in_flight == 0
    assert await classified(client)


@pytest.mark.parametrize(
    ("version", "headers"), [(b"1.1", b""), (b"1.1", b"Connection: x-hop, Close\r\n"), (b"1.0", b"")]
)
async def test_a_refusal_reaches_a_client_that_still_sends(
    gateway: tuple[Running, httpx.AsyncClient], version: bytes, headers: bytes
) -> None:
    """Closing on a body that still comes resets the connection, and the answer is lost (RFC 9112, 9.6)."""
    running, _ = gateway
    body = b"x" * (MIB - 1)
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(running))
    head = b"POST /v1/nothing HTTP/%s\r\nHost: x\r\nContent-Length: %d\r\n" % (version, len(body))
    writer.write(head + headers + b"\r\n" + body[:100])
    refusal = await reader.readuntil(b"\r\n\r\n")
    assert statuses(refusal) == [404]
    for start in range(100, len(body), 2**16):
        writer.write(body[start : start + 2**16])
        await writer.drain()
    if not headers and version == b"1.1":
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    rest = await reader.read()
    assert rest.startswith(b"{")
    assert b'"detail"' in rest
    writer.close()


async def test_unknown_paths_and_methods_are_told(client: httpx.AsyncClient) -> None:
    unknown = await client.get("/v1/nothing")
    assert unknown.status_code == 404
    malformed = await client.post("/v1/models/digits:fly")
    assert malformed.status_code == 400
    assert malformed.json() == {"error": "Malformed request: POST /v1/models/digits:fly"}
    for path, allowed in (
        (PATH, "POST"),
        ("/v1/models/digits", "GET"),
        ("/v2", "GET"),
        ("/v1/models", "GET"),
        ("/v1/rollouts/digits", "GET, POST"),
    ):
        refused = await client.request("DELETE", path)
        assert refused.status_code == 405
        assert refused.headers["allow"] == allowed
        assert refused.json().get("status", 405) == 405
    assert (await client.head("/v2")).content == b""
    for path in ("/v2/nothing", "/v2/models/digits/stats"):  # which Triton's clients ask for
        nothing = await client.get(path)
        assert nothing.status_code == 404
        assert nothing.json() == {"error": f"there is no {path} here; /openapi.json lists what there is"}
    assert (await client.get("/v2more")).json()["type"] == "urn:sluice:problem:not-found"


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

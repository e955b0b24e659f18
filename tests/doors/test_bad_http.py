"""What hostile and broken HTTP clients send, and that others do not notice."""

from __future__ import annotations

import asyncio
import gzip

import httpx
import psutil
import pytest
from starlette.types import Receive, Scope, Send

from serving.main import Running
from serving.rest.server import HttpServer, listen
from serving.rest.unread import Unread
from serving.settings import Settings
from tests.doors.wire import CLOSE, HEAD, MIB, PATH, PNG, classified, exchange, port_of, statuses
from tests.support.http import grey_png


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
        b"GET /" + b"a" * 30_000 + b" HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40_000 + b"\r\n\r\n",
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
    server = HttpServer(tell_headers, Settings(), None, Unread(Settings().max_in_flight_bytes))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    chunked = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: X-Api-Key\r\n"
    body = b"3\r\nabc\r\n0\r\nX-Api-Key: a\r\nConnection: keep-alive\r\n\r\n"
    following = b"GET / HTTP/1.1\r\nHost: x\r\nX-Api-Key: b\r\n" + CLOSE + b"\r\n"
    answers = await exchange(listener.getsockname()[1], chunked + b"\r\n" + body + following)
    server.should_exit = True
    await serving
    assert statuses(answers) == [200, 200]
    assert b"(b'trailer', b'X-Api-Key')]" in answers
    assert b"[(b'host', b'x'), (b'x-api-key', b'b'), (b'connection', b'close')]" in answers


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
    ("version", "headers"),
    [
        (b"1.1", b""),
        (b"1.1", b"Connection: x-hop, Close\r\n"),
        (b"1.1", b"Connection: x-hop\r\nConnection: Close\r\n"),
        (b"1.0", b""),
    ],
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


async def test_who_sent_what_is_no_http_is_told_at_once_that_nothing_more_comes(
    gateway: tuple[Running, httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only after the gateway has stopped lingering: a client may read until the end of the stream."""
    monkeypatch.setattr("serving.rest.connection.LINGER_S", 600.0)
    running, _ = gateway
    answer = await exchange(port_of(running), b"nonsense\r\n\r\n", timeout_s=10)
    assert statuses(answer) == [400]


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

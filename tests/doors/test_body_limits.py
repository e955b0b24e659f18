"""Bodies as large as they may be, and a byte larger; and those that are not there at their deadline."""

from __future__ import annotations

import asyncio
import gc
import gzip

import httpx
import pytest
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from serving.main import Running
from serving.rest.body import MOST_MEMBERS, MOST_UNADMITTED_BYTES, Unpacker
from serving.rest.boundary import MOST_KEPT_OPEN_BYTES
from tests.doors.replica import ScriptedReplica
from tests.doors.wire import CLOSE, HEAD, PATH, PNG, exchange, port_of, statuses
from tests.support.gateways import gateway_over
from tests.support.http import grey_png

# What is behind its end no decoder looks at; it compresses well.
IMAGE = grey_png(200) + bytes(500)
JSON = {"content-type": "application/json"}


def chunked(body: bytes) -> bytes:
    """The body in chunks of seven bytes."""
    pieces = [body[start : start + 7] for start in range(0, len(body), 7)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize(("limit", "status"), [(len(IMAGE), 200), (len(IMAGE) - 1, 413)])
async def test_a_body_may_have_just_the_limit_however_it_comes(
    replica: ScriptedReplica, limit: int, status: int
) -> None:
    async with gateway_over(replica, max_body_bytes=limit) as (running, client):
        claimed = await client.post(PATH, content=IMAGE, headers=PNG)
        packed = {**PNG, "content-encoding": "gzip"}
        unpacked = await client.post(PATH, content=gzip.compress(IMAGE), headers=packed)
        sent = HEAD + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(IMAGE)
        counted = await exchange(port_of(running), sent)
    assert (claimed.status_code, unpacked.status_code, statuses(counted)) == (status, status, [status])


async def test_a_body_that_no_place_is_kept_for_may_have_a_mebibyte(client: httpx.AsyncClient) -> None:
    just = await client.post("/v1/feedback", content=b"x" * MOST_UNADMITTED_BYTES, headers=JSON)
    over = await client.post("/v1/feedback", content=b"x" * (MOST_UNADMITTED_BYTES + 1), headers=JSON)
    assert (just.status_code, over.status_code) == (400, 413)
    assert "the body is not JSON" in just.json()["detail"]


async def test_a_body_that_no_place_is_kept_for_has_the_limit_of_others_where_that_is_less(
    replica: ScriptedReplica,
) -> None:
    async with gateway_over(replica, max_body_bytes=1000) as (_, client):
        just = await client.post("/v1/feedback", content=b"x" * 1000, headers=JSON)
        over = await client.post("/v1/feedback", content=b"x" * 1001, headers=JSON)
    assert (just.status_code, over.status_code) == (400, 413)
    assert "at most 1,000 are allowed" in over.json()["detail"]


async def test_a_body_that_is_not_there_at_the_deadline_is_told_as_that(
    gateway: tuple[Running, httpx.AsyncClient],
) -> None:
    """And not as one that came too slowly, for which it would have had longer."""
    running, _ = gateway
    sent = HEAD + CLOSE + b"X-Request-Timeout: 0.2\r\nContent-Length: 9\r\n\r\nabc"
    answer = await exchange(port_of(running), sent)
    assert statuses(answer) == [504]
    assert b"the deadline passed before the whole body had come" in answer


async def test_what_came_of_a_refused_body_is_not_kept_while_its_connection_is_idle(up: Running) -> None:
    """A refused client may stay connected for a minute; a hundred kilobytes for each would be too much."""
    sent = HEAD.replace(b"image/png", b"text/plain") + b"Content-Length: %d\r\n\r\n" % MOST_KEPT_OPEN_BYTES
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(up))
    try:
        writer.write(sent + bytes(MOST_KEPT_OPEN_BYTES // 2))
        head = await reader.readuntil(b"\r\n\r\n")
        kept = [each.body for each in gc.get_objects() if isinstance(each, RequestResponseCycle)]
        writer.write(bytes(MOST_KEPT_OPEN_BYTES // 2))  # and the connection goes on with the next request
        writer.write(HEAD + CLOSE + b"Content-Length: %d\r\n\r\n" % len(IMAGE) + IMAGE)
        rest = await reader.read()
    finally:
        writer.close()
    assert statuses(head + rest) == [415, 200]
    assert kept
    assert not any(kept)


def test_a_gzip_body_may_have_just_so_many_members() -> None:
    unpacker = Unpacker("gzip")
    packed = gzip.compress(b"") * (MOST_MEMBERS - 1) + gzip.compress(b"last")
    assert b"".join(unpacker.feed(packed)) == b"last"
    unpacker.finish()

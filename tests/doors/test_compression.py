"""Bodies that come compressed: each way that is taken, in one piece or in many, and what is refused."""

from __future__ import annotations

import gzip
import time
import zlib
from collections.abc import Callable

import httpx
import pytest
from starlette.types import Message

from serving.admission import Admission
from serving.main import Running, new_metrics
from serving.prediction import RequestContext
from serving.rest.body import MOST_MEMBERS, Body, Unpacker
from serving.settings import Settings
from tests.doors.wire import PATH, PNG
from tests.support.http import grey_png
from tests.support.turns import somebody_else


async def takes(client: httpx.AsyncClient, body: bytes, encoding: str) -> bool:
    """Whether an image that is compressed so is classified as it is."""
    answer = await client.post(PATH, content=body, headers={**PNG, "content-encoding": encoding})
    assert answer.status_code == 200, answer.text
    return bool(answer.json()["results"][0]["classes"][0]["label"] == "class-7")


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "identity"])
async def test_compressed_bodies_are_unpacked(client: httpx.AsyncClient, encoding: str) -> None:
    packers: dict[str, Callable[[bytes], bytes]] = {
        "gzip": gzip.compress,
        "x-gzip": gzip.compress,
        "deflate": zlib.compress,
        "identity": bytes,
    }
    assert await takes(client, packers[encoding](grey_png(200)), encoding)


@pytest.mark.parametrize(
    ("body", "encoding", "status", "says"),
    [
        (grey_png(9), "gzip", 400, "the body is not gzip"),
        (gzip.compress(grey_png(9))[:-9], "gzip", 400, "is truncated"),
        (gzip.compress(grey_png(9)) + b"more", "gzip", 400, "has data after its end"),
        (gzip.compress(grey_png(9)) + b"\x1fmore", "gzip", 400, "the body is not gzip"),
        (gzip.compress(grey_png(9)) + gzip.compress(b"more")[:-1], "gzip", 400, "is truncated"),
        (
            gzip.compress(grey_png(9)) + gzip.compress(b"") * MOST_MEMBERS,
            "gzip",
            400,
            "has over 4,096 members",
        ),
        (zlib.compress(grey_png(9)) + gzip.compress(b""), "deflate", 400, "has data after its end"),
        (b"", "gzip", 400, "is truncated"),
        (b"x", "br", 415, "supported are gzip, x-gzip, deflate, identity"),
        (b"x", "gzip, gzip", 415, 'the content encoding is "gzip, gzip"'),
    ],
    ids=(
        "no-gzip",
        "cut",
        "goes-on",
        "bad-member",
        "cut-member",
        "many-members",
        "deflate-goes-on",
        "empty",
        "brotli",
        "twice",
    ),  # gzip writes the time into its bytes
)
async def test_bad_compression_is_refused(
    client: httpx.AsyncClient, body: bytes, encoding: str, status: int, says: str
) -> None:
    answer = await client.post(PATH, content=body, headers={**PNG, "content-encoding": encoding})
    assert answer.status_code == status
    assert says in answer.json()["detail"]


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip"])
async def test_all_members_of_a_gzip_body_are_unpacked(
    strict: tuple[Running, httpx.AsyncClient], encoding: str
) -> None:
    """As RFC 1952 has it (2.2): pigz and `cat` make such files. The body's limit is one for all of them."""
    _, client = strict
    image = grey_png(200)
    members = b"".join(gzip.compress(image[start : start + 7]) for start in range(0, len(image), 7))
    assert await takes(client, gzip.compress(b"") + members, encoding)
    large = gzip.compress(bytes(2**18))
    headers = {**PNG, "content-encoding": encoding}
    refused = await client.post(PATH, content=large * 5, headers=headers)
    assert (refused.status_code, refused.json()["type"]) == (413, "urn:sluice:problem:too-large")


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_members_are_unpacked_however_their_bytes_come(cut: int) -> None:
    packed = gzip.compress(b"one, ") + gzip.compress(b"") + gzip.compress(bytes(10**6))
    unpacker = Unpacker("gzip")
    pieces = [packed[start : start + cut] for start in range(0, len(packed), cut)]
    unpacked = b"".join(part for piece in pieces for part in unpacker.feed(piece))
    unpacker.finish()
    assert unpacked == b"one, " + bytes(10**6)


async def test_others_have_their_turn_while_a_body_is_unpacked() -> None:
    """30 kB that unpack to 30 MB took the event loop a tenth of a second."""

    async def receive() -> Message:
        return {"type": "http.request", "body": gzip.compress(bytes(30_000_000)), "more_body": False}

    scope = {"type": "http", "headers": [(b"content-encoding", b"gzip")], "state": {"body_here": True}}
    room = Admission(max_in_flight=1, max_in_flight_bytes=10**9, metrics=new_metrics())
    context = RequestContext("id", "http", time.monotonic() + 60)
    with room.admit() as ticket:
        async with somebody_else() as turns:
            whole = await Body(scope, receive, ticket, context, Settings()).whole()
    assert whole == bytes(30_000_000)
    assert turns.taken > 100


async def test_feedback_is_not_taken_compressed_and_told_so(client: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    answer = await client.post("/v1/feedback", content=gzip.compress(b"{}"), headers=headers)
    assert answer.status_code == 415
    assert answer.json()["detail"] == 'the content encoding is "gzip"; supported are identity'
    assert (await client.get("/healthz", headers=headers)).status_code == 200

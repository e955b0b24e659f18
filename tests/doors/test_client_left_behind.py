"""What a client of Sluice asked is let go of as it is answered, or fails: images must not pile up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import pytest

import serving.client
from serving.client import AsyncClient, AsyncGrpcClient, Client, GrpcClient, Retries
from serving.errors import BadImage, DeadlineExceeded, NotFound, SluiceError
from serving.main import Running
from tests.doors.answering import answering
from tests.support.garbage import left_behind, our_frames
from tests.support.http import grey_png

CALLS = 5
ONCE = Retries(attempts=1)
_FOLDER = str(Path(serving.client.__file__).parent)


def clients_frames(found: list[Any]) -> list[FrameType]:
    """The frames of the client's functions among what was left; the gateway is in this process, too."""
    return [frame for frame in our_frames(found) if frame.f_code.co_filename.startswith(_FOLDER)]


async def failed(client: Any, image: bytes, **options: Any) -> type[SluiceError] | None:
    """Ask of an image; what kind of error that met, if it did."""
    try:
        if isinstance(client, AsyncClient | AsyncGrpcClient):
            await client.classify(image, **options)
        else:
            await asyncio.to_thread(client.classify, image, **options)
    except SluiceError as error:
        return type(error)
    return None


async def close(client: Any) -> None:
    if isinstance(client, AsyncClient | AsyncGrpcClient):
        await client.aclose()
    else:
        client.close()


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda up: Client(up.http_url, retries=ONCE), id="HTTP"),
        pytest.param(lambda up: AsyncClient(up.http_url, retries=ONCE), id="HTTP, asyncio"),
        pytest.param(lambda up: GrpcClient(up.grpc_address, retries=ONCE), id="gRPC"),
        pytest.param(lambda up: AsyncGrpcClient(up.grpc_address, retries=ONCE), id="gRPC, asyncio"),
    ],
)
@pytest.mark.parametrize(
    ("image", "model", "kind"),
    [
        pytest.param(grey_png(200), None, None, id="it is answered"),
        pytest.param(b"nonsense", None, BadImage, id="it is no image"),
        pytest.param(grey_png(200), "nobody", NotFound, id="there is no such model"),
    ],
)
async def test_what_a_gateway_answered(
    make: Callable[[Running], Any], image: bytes, model: str | None, kind: type[SluiceError], up: Running
) -> None:
    client = make(up)
    await failed(client, image, model=model)  # which makes the connection
    with left_behind() as found:
        kinds = [await failed(client, image, model=model) for _ in range(CALLS)]
    await close(client)
    assert kinds == [kind] * CALLS
    assert not clients_frames(found)
    assert not [each for each in found if isinstance(each, httpx.Request)]


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nnine"], ids=["no", "half an"]
)
async def test_who_gives_no_answer(kind: type[Client | AsyncClient], said: bytes) -> None:
    async def hang(writer: asyncio.StreamWriter) -> None:
        writer.write(said)

    async with answering(hang) as url:
        client = kind(url, retries=ONCE)
        with left_behind() as found:
            assert await failed(client, grey_png(1), timeout_s=0.01) is DeadlineExceeded
        await close(client)
    assert not clients_frames(found)
    assert not [each for each in found if isinstance(each, httpx.Request)]

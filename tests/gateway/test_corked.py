"""What is written in one turn of the event loop leaves as one piece, and nothing of it is lost."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from serving.rest.corked import MOST_BYTES, CorkedTransport


class Recording:
    """A transport that keeps what it is given."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.pieces.append(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def get_extra_info(self, name: str) -> str:
        return f"the {name}"


def corked() -> tuple[Any, Recording]:
    recording = Recording()
    return CorkedTransport(cast("asyncio.Transport", recording), asyncio.get_running_loop()), recording


async def test_a_head_and_a_body_are_one_piece() -> None:
    transport, recording = corked()
    transport.write(b"head")
    transport.write(b"body")
    assert recording.pieces == []
    await asyncio.sleep(0)
    transport.write(b"next")
    await asyncio.sleep(0)
    assert recording.pieces == [b"headbody", b"next"]


async def test_much_is_not_held_back() -> None:
    transport, recording = corked()
    transport.write(b"head")
    transport.write(bytes(MOST_BYTES))
    assert recording.pieces == [b"head" + bytes(MOST_BYTES)]


async def test_closing_sends_what_is_left_and_what_comes_later_is_dropped() -> None:
    transport, recording = corked()
    transport.write(b"last words")
    transport.close()
    transport.write(b"too late")
    await asyncio.sleep(0)
    assert recording.closed
    assert recording.pieces == [b"last words"]


async def test_the_rest_is_the_other_transports() -> None:
    transport, _ = corked()
    assert transport.get_extra_info("peername") == "the peername"

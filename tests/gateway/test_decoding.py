"""Images are decoded off the event loop, and callers take turns at it."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from serving.decoding import Decoded, Decoders
from serving.images import ImageSpec
from tests.support.fake_replica import until
from tests.support.pictures import encoded, gradient

SPEC = ImageSpec(8, 8, 1)
MAX_PIXELS = 10**7


async def test_a_caller_who_floods_delays_itself_only() -> None:
    decoders = Decoders(1)
    large, small = encoded(gradient(600, 600, "RGB"), "PNG"), encoded(gradient(8, 8, "L"), "PNG")
    ended: list[str] = []

    async def decode(caller: str, data: bytes) -> None:
        (pixels,) = await decoders.decode([data], SPEC, max_pixels=MAX_PIXELS, caller=caller)
        assert isinstance(pixels, np.ndarray)
        ended.append(caller)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(40):
            tasks.create_task(decode("flood", large))
        await asyncio.sleep(0)  # all of them wait before the other comes
        tasks.create_task(decode("other", small))
    decoders.close()
    # At most what the thread took before, and one of the flood for each that it takes at once.
    assert ended.index("other") <= 10


async def test_what_is_no_longer_wanted_is_not_decoded_and_the_rest_is() -> None:
    decoders = Decoders(1)
    images = [encoded(gradient(600, 600, "RGB"), "PNG")] * 20
    left = asyncio.create_task(decoders.decode(images, SPEC, max_pixels=MAX_PIXELS, caller="a"))
    await asyncio.sleep(0)
    left.cancel()
    found = await decoders.decode([images[0], b"nonsense"], SPEC, max_pixels=MAX_PIXELS, caller="a")
    assert isinstance(found[0], np.ndarray)
    assert "not an image" in str(found[1])
    decoders.close()


class Gate:
    """Room for pixels, once it is opened."""

    def __init__(self) -> None:
        self.asked = 0
        self.opened = threading.Event()

    @contextmanager
    def decoding(self, _size_bytes: int) -> Iterator[None]:
        self.asked += 1
        assert self.opened.wait(60)
        yield


async def test_of_several_that_are_taken_at_once_those_no_longer_wanted_are_not_decoded() -> None:
    gate = Gate()
    decoders = Decoders(1, gate)  # type: ignore[arg-type]  # the part of a Pressure that is asked
    large = encoded(gradient(1100, 1000, "L"), "PNG")

    def decode(caller: str, count: int) -> asyncio.Task[list[Decoded]]:
        return asyncio.create_task(
            decoders.decode([large] * count, SPEC, max_pixels=MAX_PIXELS, caller=caller)
        )

    first = decode("a", 1)
    await until(lambda: gate.asked == 1)
    stays, leaves = decode("b", 1), decode("c", 7)
    await asyncio.sleep(0)  # both wait behind the first
    leaves.cancel()
    await asyncio.wait([leaves])
    gate.opened.set()
    await asyncio.gather(first, stays)
    decoders.close()
    assert gate.asked == 2


class File(bytes):
    """Bytes that tell when nobody holds them any more."""

    freed = threading.Event()

    def __del__(self) -> None:
        self.freed.set()


async def test_files_of_callers_who_left_are_not_held_until_a_thread_comes_to_them() -> None:
    gate = Gate()
    decoders = Decoders(1, gate)  # type: ignore[arg-type]  # the part of a Pressure that is asked
    large = encoded(gradient(1100, 1000, "L"), "PNG")
    first = asyncio.create_task(decoders.decode([large], SPEC, max_pixels=MAX_PIXELS))
    await until(lambda: gate.asked == 1)
    leaves = asyncio.create_task(decoders.decode([File(large)], SPEC, max_pixels=MAX_PIXELS))
    await asyncio.sleep(0)  # it waits behind the first
    leaves.cancel()
    await asyncio.wait([leaves])
    del leaves
    gc.collect()
    assert File.freed.is_set()
    gate.opened.set()
    await first
    decoders.close()


async def test_what_has_not_begun_as_the_decoders_close_is_not_decoded() -> None:
    gate = Gate()
    decoders = Decoders(1, gate)  # type: ignore[arg-type]  # the part of a Pressure that is asked
    large = encoded(gradient(1100, 1000, "L"), "PNG")
    first = asyncio.create_task(decoders.decode([large], SPEC, max_pixels=MAX_PIXELS))
    await until(lambda: gate.asked == 1)
    second = asyncio.create_task(decoders.decode([large], SPEC, max_pixels=MAX_PIXELS))
    await asyncio.sleep(0)  # it waits behind the first
    closing = asyncio.create_task(asyncio.to_thread(decoders.close))
    await until(lambda: decoders._closed)
    gate.opened.set()
    await closing
    assert isinstance((await first)[0], np.ndarray)
    assert gate.asked == 1
    second.cancel()
    await asyncio.wait([second])


def test_a_thread_whose_loop_has_ended_ends_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []
    monkeypatch.setattr(threading, "excepthook", said.append)
    gate = Gate()
    decoders = Decoders(1, gate)  # type: ignore[arg-type]  # the part of a Pressure that is asked
    large = encoded(gradient(1100, 1000, "L"), "PNG")

    async def leave() -> None:
        asked = asyncio.create_task(decoders.decode([large], SPEC, max_pixels=MAX_PIXELS))
        await until(lambda: gate.asked == 1)
        asked.cancel()
        await asyncio.wait([asked])

    asyncio.run(leave())
    gate.opened.set()
    decoders.close()
    assert said == []


class Together:
    """Room for the pixels of two images, once both are there."""

    def __init__(self) -> None:
        self._both = threading.Barrier(2)

    @contextmanager
    def decoding(self, _size_bytes: int) -> Iterator[None]:
        self._both.wait(20)
        yield


async def test_the_images_of_one_request_are_decoded_on_several_threads() -> None:
    decoders = Decoders(2, Together())  # type: ignore[arg-type]  # the part of a Pressure that is asked
    large = encoded(gradient(1100, 1000, "L"), "PNG")
    for _ in range(2):
        found = await decoders.decode([large, large], SPEC, max_pixels=MAX_PIXELS)
        assert all(isinstance(each, np.ndarray) for each in found)
        await until(lambda: decoders._idle == 2)  # the second time both are to be woken
    decoders.close()


async def test_requests_that_come_together_are_decoded_on_several_threads() -> None:
    """Though the one thread that there is was idle as each of them came."""
    decoders = Decoders(2, Together())  # type: ignore[arg-type]  # the part of a Pressure that is asked
    large, small = encoded(gradient(1100, 1000, "L"), "PNG"), encoded(gradient(), "PNG")

    async def decode(image: bytes) -> Decoded:
        return (await decoders.decode([image], SPEC, max_pixels=MAX_PIXELS))[0]

    await decode(small)
    await until(lambda: decoders._idle == 1)
    found = await asyncio.gather(decode(large), decode(large))
    assert all(isinstance(each, np.ndarray) for each in found)
    decoders.close()

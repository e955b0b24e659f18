"""A request of many images in parts: which, in what order, by which version, and how the work ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager

import pytest

from serving.errors import Unavailable
from serving.parts import Part, in_parts
from serving.prediction import ImageResult, ModelRef, Prediction
from tests.support.fake_replica import until

IMAGES = [bytes([value]) for value in range(7)]


class Classified:
    """Classifies a part once the test says so; notes what it was asked, and whether work is in progress."""

    def __init__(self) -> None:
        self.asked: list[tuple[ModelRef, bytes]] = []
        self.cancelled: list[bytes] = []
        self.in_progress = False
        self.ends: dict[bytes, asyncio.Future[None]] = {}

    async def __call__(self, ref: ModelRef, images: Sequence[bytes]) -> Prediction:
        part = b"".join(images)
        self.asked.append((ref, part))
        end = self.ends[part] = asyncio.get_running_loop().create_future()
        try:
            await end
        except asyncio.CancelledError:
            self.cancelled.append(part)
            raise
        return Prediction("digits", 7, (ImageResult(),) * len(images))

    @contextmanager
    def progress(self) -> Iterator[None]:
        self.in_progress = True
        try:
            yield
        finally:
            self.in_progress = False

    def parts(self) -> AsyncIterator[Part]:
        """Of the seven images, three at a time."""
        return in_parts(self, ModelRef("digits", label="new"), IMAGES, 3, self.progress())

    async def end(self, part: bytes) -> None:
        await until(lambda: part in self.ends)
        self.ends[part].set_result(None)


FIRST, SECOND, LAST = b"\0\1\2", b"\3\4\5", b"\6"


async def reading(parts: AsyncIterator[Part]) -> asyncio.Future[Part]:
    """The next part, being waited for."""
    waits = asyncio.ensure_future(anext(parts))
    await asyncio.sleep(0)
    return waits


async def test_parts_come_as_they_are_done_all_by_the_version_that_answered_the_first() -> None:
    found = Classified()
    parts = found.parts()
    first = await reading(parts)
    await until(lambda: FIRST in found.ends)
    assert found.asked == [(ModelRef("digits", label="new"), FIRST)], "none is begun before the first is done"
    await found.end(FIRST)
    assert (await first)[0] == 0
    await found.end(LAST)
    start, prediction = await anext(parts)
    assert (start, len(prediction.results)) == (6, 1)
    await found.end(SECOND)
    start, prediction = await anext(parts)
    assert (start, len(prediction.results)) == (3, 3)
    assert found.asked[1:] == [(ModelRef("digits", 7), SECOND), (ModelRef("digits", 7), LAST)]
    with pytest.raises(StopAsyncIteration):
        await anext(parts)


async def test_work_is_in_progress_until_the_last_part_is_done_whoever_reads_it() -> None:
    found = Classified()
    parts = found.parts()
    first = await reading(parts)
    await until(lambda: found.in_progress)
    await found.end(FIRST)
    await first
    await found.end(SECOND)
    assert found.in_progress
    await found.end(LAST)
    await until(lambda: not found.in_progress)
    assert sorted([start async for start, _ in parts]) == [3, 6]


async def test_a_part_that_fails_ends_the_others_and_what_was_done_is_read_before() -> None:
    found = Classified()
    parts = found.parts()
    first = await reading(parts)
    await found.end(FIRST)
    await first
    await until(lambda: LAST in found.ends)
    found.ends[LAST].set_exception(Unavailable("gone"))
    with pytest.raises(Unavailable, match="gone"):
        await anext(parts)
    await until(lambda: found.cancelled == [SECOND])
    await until(lambda: not found.in_progress)


async def test_a_reader_who_leaves_ends_the_work() -> None:
    found = Classified()
    parts = found.parts()
    first = await reading(parts)
    await found.end(FIRST)
    await first
    leaves = await reading(parts)
    await until(lambda: LAST in found.ends)
    leaves.cancel()
    await asyncio.wait([leaves])
    await until(lambda: sorted(found.cancelled) == [SECOND, LAST])
    await until(lambda: not found.in_progress)


async def test_work_that_is_cancelled_from_within_leaves_no_reader_waiting() -> None:
    found = Classified()
    first = await reading(found.parts())
    await until(lambda: FIRST in found.ends)
    found.ends[FIRST].cancel()
    await asyncio.wait([first], timeout=10)
    assert first.cancelled()

"""A request of many images, answered a batch at a time, as each is done.

The work does not wait for its reader: it ends with the last part, or when the reader leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager

from serving.prediction import ModelRef, Prediction

Part = tuple[int, Prediction]
"""Where a part begins among the images, and its results."""
Classify = Callable[[ModelRef, Sequence[bytes]], Awaitable[Prediction]]


async def in_parts(
    classify: Classify,
    ref: ModelRef,
    images: Sequence[bytes],
    size: int,
    progress: AbstractContextManager[object],
) -> AsyncGenerator[Part, None]:
    """Classify images `size` at a time.

    Parts come as they are done, in any order, all from the version that answered the first; no other part
    begins before that.

    Args:
        classify: classifies some of them.
        ref: the model and version that the caller asks for.
        images: the files.
        size: images in a part.
        progress: entered only while there is work, however slowly the parts are read.

    Raises:
        SluiceError: the error of the first part that failed.
    """
    done: asyncio.Queue[Part | BaseException | None] = asyncio.Queue()

    def end(work: asyncio.Task[None]) -> None:
        done.put_nowait(asyncio.CancelledError() if work.cancelled() else work.exception())

    work = asyncio.create_task(_work(classify, ref, images, size, progress, done.put_nowait))
    work.add_done_callback(end)
    try:
        while isinstance(each := await done.get(), tuple):
            yield each
        if each is not None:
            raise each
    finally:
        work.cancel()


async def _work(
    classify: Classify,
    ref: ModelRef,
    images: Sequence[bytes],
    size: int,
    progress: AbstractContextManager[object],
    done: Callable[[Part], None],
) -> None:
    with progress:
        first = await classify(ref, images[:size])
        done((0, first))
        pinned = ModelRef(first.model, first.version)

        async def part(start: int) -> None:
            done((start, await classify(pinned, images[start : start + size])))

        parts = [asyncio.ensure_future(part(start)) for start in range(size, len(images), size)]
        try:
            await asyncio.gather(*parts)
        finally:
            for each in parts:
                each.cancel()

"""A request of many images a batch at a time: its answers come as they are done.

The work goes on whoever reads them: it ends with the last part, or when its reader leaves.
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

    Parts come as they are done, in any order, and all by the version that answered the first; none is begun
    before that.

    Args:
        classify: classifies some of them.
        ref: the model and version that the caller asks for.
        images: the files.
        size: images in a part.
        progress: entered while there is work, and no longer, however slowly the parts are taken.

    Raises:
        SluiceError: what the first part that failed has failed with.
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

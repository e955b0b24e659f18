"""Tasks that hold nothing any more once they were cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from serving.errors import without_frames

Result = TypeVar("Result")


async def holding_nothing(work: Awaitable[Result]) -> Result:
    """What `work` gives, for a task of its own that may be cancelled.

    Such a task keeps the CancelledError, and that the frames that it passed, with a request and its images.
    Among them is most often one of `asyncio.timeout`, which has the task: then all of it stays until the
    garbage collector comes (see `without_frames`).
    """
    try:
        return await work
    except asyncio.CancelledError as error:
        without_frames(error)
        raise

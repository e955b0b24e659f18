"""Work that takes a while, such as parsing a large body, on threads off the event loop."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

from serving.errors import SluiceError, out_of_memory, without_frames

Result = TypeVar("Result")
Args = TypeVarTuple("Args")


class Threads:
    """Threads that work, first come, first served.

    Args:
        count: how many.
        name: what their names begin with.
    """

    def __init__(self, count: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)

    async def run(self, work: Callable[[*Args], Result], *args: *Args) -> Result:
        """Do work on a thread. If the caller leaves, what has not begun is not done.

        Raises:
            Overloaded: there is no memory for a thread.
            BaseException: what `work` raises.
        """
        # The executor's queue keeps what it was given until a thread gets to it, wanted or not: the body of a
        # caller who has left must not be held that long.
        waiting = [functools.partial(work, *args)]
        try:
            begun = asyncio.get_running_loop().run_in_executor(self._pool, _do, waiting)
        except RuntimeError:  # there is no memory for a thread's stack
            raise out_of_memory() from None
        try:
            return await begun
        finally:
            waiting.clear()

    def close(self) -> None:
        """End the threads; what has not begun is not done."""
        self._pool.shutdown(cancel_futures=True)


def _do(waiting: list[functools.partial[Result]]) -> Result:
    try:
        return waiting.pop()()
    except SluiceError as error:
        without_frames(error)
        raise

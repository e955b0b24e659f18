"""What goes on beside a test, without an end: callers, watchers, somebody who disturbs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def beside(*endless: Coroutine[Any, Any, Any]) -> AsyncIterator[None]:
    """Runs these for as long as the block runs.

    Raises:
        ExceptionGroup: of what some of them failed with. A caller that was cut off would otherwise only have
            stopped asking, and whoever looks at the answers it did get would see nothing wrong.
    """
    tasks = [asyncio.ensure_future(each) for each in endless]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        faults = [task.exception() for task in tasks if not task.cancelled()]
        if found := [fault for fault in faults if isinstance(fault, Exception)]:
            raise ExceptionGroup("what went on beside the test failed", found)

"""What every task and thread is doing at the moment, for a process that seems to be stuck."""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any


def dump() -> str:
    """The stacks of the running loop's tasks and of all threads, innermost call last."""
    return "\n".join([*_tasks(), *_threads()])


def _tasks() -> Iterator[str]:
    tasks = sorted(asyncio.all_tasks(), key=lambda task: task.get_name())
    yield f"{len(tasks)} tasks"
    for task in tasks:
        coroutine = task.get_coro()
        yield f"Task {task.get_name()}: {getattr(coroutine, '__qualname__', coroutine)}"
        for frame in _frames(coroutine):
            code = frame.f_code
            yield f'  File "{code.co_filename}", line {frame.f_lineno}, in {code.co_name}'


def _frames(awaited: Any) -> Iterator[FrameType]:
    """The frames of a coroutine and of those that it awaits; `Task.get_stack` has only the outermost."""
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None:
            yield frame
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)


def _threads() -> Iterator[str]:
    frames = sys._current_frames()
    yield f"{len(frames)} threads"
    for thread in threading.enumerate():
        yield f"Thread {thread.name}:"
        if thread.ident in frames:
            yield "".join(traceback.format_stack(frames[thread.ident])).rstrip()


def dump_to_stderr() -> None:
    """Write the stacks to stderr, as they are: a person reads them."""
    print(dump(), file=sys.stderr, flush=True)

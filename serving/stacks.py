"""What every task and thread is doing at the moment, for a process that seems to be stuck."""

from __future__ import annotations

import asyncio
import io
import sys
import threading
import traceback


def dump() -> str:
    """The stacks of the running loop's tasks, innermost call last, and of all threads."""
    text = io.StringIO()
    tasks = sorted(asyncio.all_tasks(), key=lambda task: task.get_name())
    print(f"{len(tasks)} tasks", file=text)
    for task in tasks:
        task.print_stack(file=text)
    frames = sys._current_frames()
    print(f"{len(frames)} threads", file=text)
    for thread in threading.enumerate():
        print(f"Thread {thread.name}:", file=text)
        if thread.ident in frames:
            traceback.print_stack(frames[thread.ident], file=text)
    return text.getvalue()


def dump_to_stderr() -> None:
    """Write the stacks to stderr, as they are: a person reads them."""
    print(dump(), file=sys.stderr, flush=True)

"""Child processes: restarted when they die, and ended politely at first, then for certain."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import signal
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn

import structlog

_log = structlog.get_logger()

_PR_SET_PDEATHSIG = 1
FIRST_PAUSE_S = 0.5
MAX_PAUSE_S = 30.0
# A child that lived this long was fine: pauses start from the first one again.
HEALTHY_AFTER_S = 60.0


async def keep_alive(
    run_once: Callable[[], Awaitable[int]],
    name: str,
    ended: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
) -> NoReturn:
    """Run a child again and again until cancelled, with a pause that doubles while it keeps dying.

    Args:
        run_once: runs it to its end, or ends it when cancelled; returns its exit code.
        name: what it is called in the log.
        ended: called at each end.
        clock: the monotonic clock, in seconds.

    Raises:
        OSError: it could not be started at all. Once it has run, a failed start is retried: the system may
            be short of memory or processes for a moment.
    """
    pause_s = FIRST_PAUSE_S
    has_run = False
    while True:
        started = clock()
        try:
            why = _describe(await run_once())
        except OSError as error:
            if not has_run:
                raise
            why = f"it could not be started: {error.strerror}"
        has_run = True
        pause_s = FIRST_PAUSE_S if clock() - started > HEALTHY_AFTER_S else pause_s
        _log.warning(f"{name} ended; starting it again", why=why, after_s=pause_s)
        ended()
        await asyncio.sleep(pause_s)
        pause_s = min(MAX_PAUSE_S, 2 * pause_s)


def end_with_parent() -> None:
    """For a child to call before it runs its program: SIGTERM comes as its parent dies (prctl(2), Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


async def end(child: asyncio.subprocess.Process, name: str, timeout_s: float) -> None:
    """End a child that may have ended: politely, then after `timeout_s` seconds for certain."""
    if child.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
    try:
        async with asyncio.timeout(timeout_s):
            await child.wait()
    except TimeoutError:
        _log.warning(f"{name} does not end; killing it", pid=child.pid)
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


def _describe(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

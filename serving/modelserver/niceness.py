"""The priority of threads that compute: below those that accept calls and send answers."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

# A thread that computes keeps its core until its time slice is used up. A thread that sends an answer, or
# accepts the next call, should get one at once: with two callers on two cores that is 1.5 % of throughput.
NICENESS = 5


def step_back() -> None:
    """Let the process's other threads go before this one, and before those that it starts from now on.

    Only on Linux, where each thread has its own priority (sched(7)); it cannot be undone without privileges.
    """
    if sys.platform == "linux":
        usual = os.getpriority(os.PRIO_PROCESS, os.getpid())  # of the main thread
        with contextlib.suppress(OSError):  # a sandbox may refuse it, which costs only time
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(usual + NICENESS, 19))

"""The priority of threads that compute: below that of those that take calls and send answers off."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

# A thread that computes keeps its core until its slice of time is used up. What sends an answer off, or takes
# the next call, is to have one at once: with two callers on two cores that is worth 1.5 % of the throughput.
NICENESS = 5


def step_back() -> None:
    """Let the process's other threads go before this one, and before those that it starts from now on.

    On Linux alone, where each thread has a priority of its own (sched(7)); not to be taken back without
    privileges.
    """
    if sys.platform == "linux":
        usual = os.getpriority(os.PRIO_PROCESS, os.getpid())  # of the main thread
        with contextlib.suppress(OSError):  # a sandbox may refuse it, and nothing but time hangs on it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(usual + NICENESS, 19))

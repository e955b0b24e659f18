"""A process whose clock on the wall can be set, while the machine's stays as it is.

A library that is loaded before all others (ld.so(8), LD_PRELOAD) adds a number of seconds, which lies in a
file that is mapped into memory, to whatever asks for the time of day: Python, gRPC and SQLite alike. The
monotonic clock is left alone, as it is when somebody sets a real clock.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

_SOURCE = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *step;

static int64_t added(void) {
    if (!step) {
        int file = open(getenv("STEPPED_CLOCK"), O_RDONLY);
        if (file < 0) abort();
        step = mmap(0, sizeof *step, PROT_READ, MAP_SHARED, file, 0);
        close(file);
    }
    return *step;
}

int clock_gettime(clockid_t id, struct timespec *at) {
    int result = syscall(SYS_clock_gettime, id, at);
    if (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE) at->tv_sec += added();
    return result;
}

int gettimeofday(struct timeval *at, void *zone) {
    struct timespec now;
    (void)zone;
    int result = clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return result;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""


class SteppedClock:
    """A clock that is set from outside. Skips the test where there is no C compiler.

    Args:
        folder: where the library and the file go.

    Attributes:
        environment: what a process needs to have this clock.
    """

    def __init__(self, folder: Path) -> None:
        if shutil.which("gcc") is None:
            pytest.skip("needs gcc")
        source, library = folder / "clock.c", folder / "clock.so"
        source.write_text(_SOURCE)
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
        self._step = folder / "step"
        self._step.write_bytes(bytes(8))
        self.environment = {"LD_PRELOAD": str(library), "STEPPED_CLOCK": str(self._step)}

    def step(self, seconds: int) -> None:
        """Set the clock so many seconds before or behind the machine's, at once."""
        with self._step.open("r+b", buffering=0) as file:
            file.write(struct.pack("=q", seconds))

"""How many processors this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def usable_cores(cgroup: Path = _CGROUP) -> int:
    """Those that it may run on, or fewer if its control group has less CPU time, as a container with a limit.

    One thread per core of a large machine would use up a small limit early in each period, and the process
    would be throttled for the rest of it (cgroups(7), "CPU bandwidth control").

    Args:
        cgroup: where the control group's files are, of version 2 or 1.
    """
    affine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(affine, _quota(cgroup))))


def _quota(cgroup: Path) -> float:
    """How many processors' time the control group has; infinite if it does not say."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text()
        except OSError:
            return math.inf
    try:
        share = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max", say
        return math.inf
    return share if share > 0 else math.inf  # version 1 says -1 for none

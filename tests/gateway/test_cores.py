"""How many processors a process may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serving.cores import usable_cores

AFFINE = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "110000 100000\n"}, min(AFFINE, 2)),
        ({"cpu.max": "6400000 100000\n"}, AFFINE),
        ({"cpu.max": "max 100000\n"}, AFFINE),
        ({"cpu.max": "damaged"}, AFFINE),
        ({"cpu/cpu.cfs_quota_us": "25000\n", "cpu/cpu.cfs_period_us": "50000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, AFFINE),
        ({}, AFFINE),
    ],
)
def test_they_are_those_of_the_machine_or_what_the_control_group_has_time_for(
    files: dict[str, str], cores: int, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path) == cores

"""Weights and activations on huge pages.

Each call of a large model reads through hundreds of megabytes. With pages of 4 KiB, most of their addresses
are missing from the processor's translation cache (TLB), which costs twice as much on a virtual machine. With
pages of 2 MiB, a call of a ResNet-50 takes about 1 % less processor time.

By default, Linux gives huge pages to programs that ask for them (madvise(2)). glibc's malloc asks if the
environment variable GLIBC_TUNABLES says so when the process starts; mallopt(3) has no parameter for it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

KERNEL_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLES = "GLIBC_TUNABLES"
_NAME = "glibc.malloc.hugetlb"


def ask() -> None:
    """Restart this program, in the same process, so that its memory comes in huge pages.

    To be called before anything else. Returns where a restart would change nothing: the kernel gives huge
    pages to every program or to none, or GLIBC_TUNABLES already says whether to ask for them.
    """
    tunables = os.environ.get(_TUNABLES, "")
    if _NAME in tunables or not is_to_be_asked_for() or not sys.executable:
        return
    os.environ[_TUNABLES] = ":".join(filter(None, [tunables, f"{_NAME}=1"]))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - this program itself


def is_to_be_asked_for() -> bool:
    """Whether the kernel gives huge pages only to programs that ask."""
    try:
        return "[madvise]" in KERNEL_SETTING.read_text()
    except OSError:
        return False

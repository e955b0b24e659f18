"""What computes lets those go first that take calls and send answers off."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving.modelserver.manager import ModelManager, RetryPolicy
from serving.modelserver.niceness import NICENESS, step_back
from serving.modelserver.widths import Cores
from tests.modelserver.managed import AVAILABLE, Fake, wanted
from tests.modelserver.process import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def stepped_back() -> int:
    """The niceness of a thread that let others go first, of this process."""
    return min(os.getpriority(os.PRIO_PROCESS, os.getpid()) + NICENESS, 19)


def test_a_thread_steps_back_once_and_so_do_those_that_it_starts() -> None:
    def work() -> list[int]:
        step_back()
        step_back()
        with ThreadPoolExecutor(1) as inner:
            return [niceness(), inner.submit(niceness).result()]

    before = niceness()
    with ThreadPoolExecutor(1) as outer:
        assert outer.submit(work).result() == [stepped_back()] * 2
    assert niceness() == before


def test_narrow_runs_step_back() -> None:
    assert Cores(2).narrow.submit(niceness).result() == stepped_back()


def test_loads_step_back_and_with_them_the_threads_that_they_start() -> None:
    seen: list[int] = []

    def load(_name: str, _version: int, _path: Path) -> Fake:
        with ThreadPoolExecutor(1) as inner:
            seen.extend([niceness(), inner.submit(niceness).result()])
        return Fake()

    manager = ModelManager(load, RetryPolicy(0, 0.0), 1)
    manager.want("m", wanted(1))
    until(lambda: manager.states("m").get(1) == AVAILABLE, "the version is there")
    assert seen == [stepped_back()] * 2


def test_where_it_is_refused_the_thread_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", refuse)
    before = niceness()
    step_back()
    assert niceness() == before

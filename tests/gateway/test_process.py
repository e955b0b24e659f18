"""The process is set up as measurements showed to be best."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

from serving import main

SCRIPT = """
import asyncio, gc, json, sys, threading
from serving import main

async def tell():
    print(json.dumps([sys.getswitchinterval(), list(gc.get_threshold()), gc.get_freeze_count() > 1000,
                      type(asyncio.get_running_loop()).__module__,
                      sum(each.name.startswith("beside") for each in threading.enumerate())]))

main.run(tell())
"""


def test_it_runs_on_uvloop_with_rare_collections_and_threads_that_are_there_and_take_quick_turns() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60
    )
    switch_interval_s, thresholds, frozen, loop, threads = json.loads(done.stdout)
    assert switch_interval_s == pytest.approx(main.SWITCH_INTERVAL_S)
    assert thresholds == list(main.GC_THRESHOLDS)
    assert frozen
    assert loop.startswith("uvloop")
    assert threads > 1, "they are started while there is memory for their stacks"


ENDLESS = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "becomes"),
    [
        (1024, ENDLESS, main.MOST_FILES),
        (1024, 4096, 4096),
        (4096, 4096, None),
        (main.MOST_FILES, ENDLESS, None),
        (10 * main.MOST_FILES, ENDLESS, None),
        (ENDLESS, ENDLESS, None),
    ],
)
def test_as_many_files_may_be_open_as_there_may_be_and_never_fewer_than_before(
    soft: int, hard: int, becomes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: made.append((which, limits)))
    main._allow_many_files()
    assert made == ([] if becomes is None else [(resource.RLIMIT_NOFILE, (becomes, hard))])

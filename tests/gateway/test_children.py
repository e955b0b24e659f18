"""Child processes that end, and that cannot be started again."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from serving import children

NO_MEMORY = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


class Scripted:
    """A child whose runs end as the test says, and then one that lasts."""

    def __init__(self, *runs: int | OSError) -> None:
        self._runs: Iterator[int | OSError] = iter(runs)
        self.lasts = asyncio.Event()

    async def __call__(self) -> int:
        run = next(self._runs, None)
        if run is None:
            self.lasts.set()
            await asyncio.Event().wait()
        if isinstance(run, OSError):
            raise run
        assert run is not None
        return run


async def test_a_child_that_cannot_be_started_again_at_the_moment_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(children, "FIRST_PAUSE_S", 0.001)
    child, ends = Scripted(1, NO_MEMORY, -9), 0

    def ended() -> None:
        nonlocal ends
        ends += 1

    with capture_logs() as lines:
        keeping = asyncio.create_task(children.keep_alive(child, "the child", ended))
        await asyncio.wait_for(child.lasts.wait(), 60)
        keeping.cancel()
    assert [line["why"] for line in lines] == [
        "exit code 1",
        "it could not be started: Cannot allocate memory",
        "killed by SIGKILL",
    ]
    assert ends == 3


async def test_why_a_child_cannot_be_started_at_all_is_said() -> None:
    with pytest.raises(OSError, match="Cannot allocate memory"):
        await children.keep_alive(Scripted(NO_MEMORY), "the child")

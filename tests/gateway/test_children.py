"""Child processes: how soon one that dies is started again, what is said of it, and that each ends."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from serving.processes import children

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


async def test_one_that_keeps_dying_is_started_ever_later_until_it_has_lived_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(children, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(children, "MAX_PAUSE_S", 0.004)
    now, lives, ends = 0.0, iter([1.0, 1.0, 1.0, 1.0, children.HEALTHY_AFTER_S + 1.0, 1.0]), 0
    codes = iter([3, 0, 1, 3, -signal.SIGKILL, 3])

    async def run_once() -> int:
        nonlocal now
        lived_s = next(lives, None)
        if lived_s is None:
            await asyncio.Event().wait()
        now += lived_s or 0.0
        return next(codes)

    def ended() -> None:
        nonlocal ends
        ends += 1

    with capture_logs() as lines:
        keeping = asyncio.create_task(children.keep_alive(run_once, "it", ended, lambda: now))
        async with asyncio.timeout(60):
            while ends < 6:
                await asyncio.sleep(0)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
    assert {line["event"] for line in lines} == {"it ended; starting it again"}
    assert [line["after_s"] for line in lines] == [0.001, 0.002, 0.004, 0.004, 0.001, 0.002]
    assert [line["why"] for line in lines] == [
        *(f"exit code {code}" for code in (3, 0, 1, 3)),
        "killed by SIGKILL",
        "exit code 3",
    ]


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


@pytest.mark.parametrize(
    ("on_sigterm", "code"), [("exit 7", 7), ("", -signal.SIGKILL)], ids=["politely", "for certain"]
)
async def test_one_is_ended_politely_or_for_certain(on_sigterm: str, code: int) -> None:
    script = f"trap '{on_sigterm}' TERM; echo up; while read -r line; do :; done"
    child = await asyncio.create_subprocess_exec(
        "sh", "-c", script, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    assert await child.stdout.readline() == b"up\n"
    with capture_logs() as lines:
        await children.end(child, "it", 0.5 if code < 0 else 60.0)
    assert child.returncode == code
    killing = {"event": "it does not end; killing it", "pid": child.pid, "log_level": "warning"}
    assert lines == ([killing] if code < 0 else [])
    await children.end(child, "it", 60.0)  # which is no error


def test_a_child_whose_parent_is_killed_is_asked_to_end() -> None:
    child = (
        "import signal, sys\n"
        "def asked(*_):\n"
        "    print('asked', flush=True)\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGTERM, asked)\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    program = (
        "import subprocess, sys\n"
        "from serving.processes.children import end_with_parent\n"
        f"subprocess.run([sys.executable, '-c', {child!r}], preexec_fn=end_with_parent)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        parent.kill()
        assert parent.stdout.read() == "asked\n"

"""What a gateway writes outside a terminal: a JSON object a line, whoever speaks, and not without bound."""

from __future__ import annotations

import errno
import io
import json
import os
import socket
import subprocess
import sys
from typing import Any

import httpx
import pytest

from serving.telemetry.logs import MAX_FAILURES_PER_S, Lossy
from tests.support.fake_replica import FakeReplica, running
from tests.support.processes import started


def written_by(program: str) -> list[dict[str, Any]]:
    """The lines of a program that logs as a gateway does."""
    done = subprocess.run(
        [sys.executable, "-c", f"from serving.telemetry import logs\nlogs.configure_logging()\n{program}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [json.loads(line) for line in done.stderr.splitlines()]


class FullDisk(io.StringIO):
    """A stream of which some operations fail while they are named in `failing`."""

    failing: tuple[str, ...] = ()

    def write(self, text: str) -> int:
        self._fail("write")
        return super().write(text)

    def flush(self) -> None:
        self._fail("flush")

    def _fail(self, operation: str) -> None:
        if operation in self.failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("failing", [("write",), ("flush",), ("write", "flush")])
def test_each_line_that_cannot_be_written_is_counted_once(failing: tuple[str, ...]) -> None:
    disk = FullDisk()
    stream = Lossy(lambda: disk)
    print("before", file=stream, flush=True)
    assert stream.lost == 0
    disk.failing = failing
    for lost in (1, 2):
        print("lost", file=stream, flush=True)
        assert stream.lost == lost
    disk.failing = ()
    print("after", file=stream, flush=True)
    assert stream.lost == 2
    assert disk.getvalue().startswith("before\n")
    assert disk.getvalue().endswith("after\n")


def test_what_libraries_log_and_warn_of_has_the_form_of_all_else() -> None:
    logged, warned, fault = written_by(
        "import logging, warnings\n"
        "logging.getLogger('asyncio').info('not of interest')\n"
        "logging.getLogger('asyncio').warning('%s\\nthings', 2)\n"
        "warnings.warn('soon', RuntimeWarning)\n"
        "try:\n"
        "    secret = 'xyz' + 'zzy'\n"
        "    1 / 0\n"
        "except ZeroDivisionError:\n"
        "    logging.getLogger('uvicorn.error').exception('a fault')\n"
    )
    assert (logged["event"], logged["level"], logged["logger"]) == ("2\nthings", "warning", "asyncio")
    assert "RuntimeWarning: soon" in warned["event"]
    assert fault["exception"][0]["exc_type"] == "ZeroDivisionError"
    assert "xyzzzy" not in json.dumps(fault)


def test_a_flood_of_a_librarys_lines_is_bounded_and_counted() -> None:
    lines = written_by(
        "import logging, time\n"
        "end = time.monotonic() + 1.1\n"
        "while time.monotonic() < end:\n"
        "    logging.getLogger('x').warning('no')\n"
    )
    assert MAX_FAILURES_PER_S <= len(lines) <= 3 * MAX_FAILURES_PER_S
    assert max(line.get("suppressed", 0) for line in lines) > MAX_FAILURES_PER_S


def test_tracebacks_are_bounded_and_counted_and_other_lines_are_not() -> None:
    faults = MAX_FAILURES_PER_S + 30
    lines = written_by(
        "import structlog, time\n"
        "log = structlog.get_logger()\n"
        "def fail():\n"
        "    try:\n"
        "        1 / 0\n"
        "    except ZeroDivisionError as error:\n"
        "        log.error('a fault', exc_info=error)\n"
        "time.sleep(1.0 - time.monotonic() % 1.0)\n"  # all of them in one second
        f"for _ in range({faults}): fail()\n"
        f"for _ in range({faults}): log.warning('a word')\n"
        "time.sleep(1.0 - time.monotonic() % 1.0)\n"
        "fail()\n"
    )
    told = [line for line in lines if line["event"] == "a fault"]
    assert len(lines) - len(told) == faults
    assert len(told) == MAX_FAILURES_PER_S + 1
    assert {line["exception"][0]["exc_type"] for line in told} == {"ZeroDivisionError"}
    assert [line.get("suppressed") for line in told] == [*[None] * MAX_FAILURES_PER_S, 30]


async def test_bytes_that_are_no_http_leave_no_line_of_plain_text() -> None:
    async with (
        running(FakeReplica()) as replica,
        started(["gateway", f"--replica={replica.address}", "--model=digits"]) as live,
    ):
        host, port = httpx.URL(live.http_url).host, httpx.URL(live.http_url).port
        with socket.create_connection((host, port or 0), 60) as client:
            client.sendall(b"nonsense\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.1 400"
        await live.end()
    events = [json.loads(line)["event"] for line in live.errors]
    assert "shutting down" in events

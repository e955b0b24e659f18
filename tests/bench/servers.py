"""Processes under measurement: started, found ready, held still while others are measured, ended."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).parents[2]
START_TIMEOUT_S = 120.0
SETTLE_S = 0.2


@contextlib.contextmanager
def process(*arguments: str, pattern: str = r"(.+)") -> Iterator[tuple[str, int]]:
    """A Python program while the block runs: the first group of `pattern` in its output, and its pid."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=REPOSITORY,
        env=environment,
    )
    assert child.stdout is not None
    try:
        for line in child.stdout:
            if found := re.search(pattern, line):
                yield found[1], child.pid
                return
        raise RuntimeError(f"{' '.join(arguments)} ended with code {child.wait()}")
    finally:
        end(child.pid)
        child.wait()


class InProcess:
    """A process that calls a SavedModel itself, as often as it is asked to.

    Args:
        folder: the SavedModel.
        side: of its images, in pixels.
    """

    def __init__(self, folder: Path, side: int) -> None:
        command = [sys.executable, "-m", "tests.bench.ceilings", "in-process", str(folder), str(side)]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        self._child = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=nothing, text=True, cwd=REPOSITORY, env=environment
        )
        self._answer()

    def _answer(self) -> Any:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError(f"the model in process ended with code {self._child.wait()}")
        return json.loads(line)

    def calls_per_s(self, size: int, callers: int, seconds: float) -> float:
        """Calls a second with batches of this size."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps({"size": size, "callers": callers, "seconds": seconds}) + "\n")
        self._child.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        """End it."""
        end(self._child.pid)
        self._child.wait()


def tree(pid: int) -> list[psutil.Process]:
    """A process and all that it started, itself first; empty if it is gone."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def end(pid: int, patience_s: float = 10.0) -> None:
    """Terminate a process and all that it started; kill what does not end."""
    processes = tree(pid)
    for each in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.resume()
            if each.pid == pid:
                each.terminate()
    stubborn = psutil.wait_procs(processes, timeout=patience_s)[1]
    for each in stubborn:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(stubborn, timeout=patience_s)


def hold(pid: int) -> None:
    """Stop a process and all that it started from running: servers that poll cost others processor time."""
    for each in tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            each.suspend()


def settle(pid: int, patience_s: float = 10.0) -> None:
    """Wait until a process no longer works on what clients who have left asked for."""
    deadline = time.monotonic() + patience_s
    busy = True
    while busy and time.monotonic() < deadline:
        used = cpu_s(pid)
        time.sleep(SETTLE_S)
        busy = cpu_s(pid) - used > SETTLE_S / 2


@contextlib.contextmanager
def running(pid: int) -> Iterator[None]:
    """A held process runs while the block does; children first, lest a parent take them for dead."""
    for each in reversed(tree(pid)):
        with contextlib.suppress(psutil.NoSuchProcess):
            each.resume()
    try:
        yield
    finally:
        hold(pid)


def cpu_s(pid: int) -> float:
    """Processor time that a process and all that it started have used."""
    times = [each.cpu_times() for each in tree(pid)]
    return float(sum(each.user + each.system for each in times))


def memory_mb(pid: int) -> float:
    """Resident memory of a process and all that it started."""
    return float(sum(each.memory_info().rss for each in tree(pid)) / 1e6)


def until(condition: Callable[[], bool], what: str = "a server", timeout_s: float = START_TIMEOUT_S) -> None:
    """Wait for something; raises TimeoutError if it takes too long."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} was not up after {timeout_s:g} s")
        time.sleep(0.1)


def is_ready(url: str) -> bool:
    """Whether a gateway is ready."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def gateway(replica: str, model: str, options: Sequence[str] = ()) -> Iterator[tuple[str, str, int]]:
    """`sluice gateway` in front of a replica: its URL, its gRPC address, its pid."""
    command = ["-m", "serving.cli", "gateway", f"--replica={replica}", f"--model={model}"]
    command += ["--http-port=0", "--grpc-port=0", *options]
    with contextlib.ExitStack() as stack:
        url, pid = stack.enter_context(process(*command, pattern=r"HTTP\s+(http://\S+)"))
        until(lambda: is_ready(url), "the gateway")
        yield url, _grpc_address(pid, url), pid


def _grpc_address(pid: int, url: str) -> str:
    """The other port that a gateway, or its workers, listen on."""
    ports = {
        each.laddr.port
        for process in tree(pid)
        for each in process.net_connections()
        if each.status == "LISTEN"
    }
    (port,) = ports - {int(url.rpartition(":")[2])}
    return f"127.0.0.1:{port}"

"""The model server that `sluice serve` runs as a child: started, kept alive, ended.

Any program that takes `tensorflow_model_server`'s flags will do. The gateway reaches it over a unix
socket.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from importlib.util import find_spec
from pathlib import Path

import structlog

from serving import grpc_environment
from serving.errors import FailedPrecondition
from serving.processes import children
from serving.processes.upstream import ConfigFile
from serving.telemetry.logs import Lossy
from serving.telemetry.metrics import Metrics

_log = structlog.get_logger()

TERMINATE_TIMEOUT_S = 10.0
LAST_WORDS_S = 1.0
LOAD_RETRY_INTERVAL_S = 1

# absl's lines before its log is set up, which no environment variable silences: what the processor supports,
# that there is no GPU, and that this is not an error.
_CHATTER = re.compile(
    rb"WARNING: All log messages before absl|[IW]0000 00:00:|E0000 00:00:.* failed call to cuInit"
)

OWN_PROGRAM = (sys.executable, "-m", "serving.modelserver")


def find_program(named: str | None) -> list[str]:
    """The command of the model server: `named`, which may have arguments, or Sluice's own.

    Raises:
        FailedPrecondition: there is no such program, or what Sluice's own needs is not installed.
    """
    if named is None:
        if find_spec("tensorflow") is None:
            raise FailedPrecondition(
                "Sluice's own model server needs TensorFlow: pip install 'sluice[model-server]', or name "
                "another one: --model-server tensorflow_model_server"
            )
        return list(OWN_PROGRAM)
    words = shlex.split(named)
    if not words or shutil.which(words[0]) is None:
        raise FailedPrecondition(f'the model server "{named}" is not a program that can be found')
    return words


class ModelServerProcess:
    """One model server, run as a child.

    Args:
        command: the program and its first arguments.
        work_dir: a folder of the caller's for the socket.
        config: the models that it starts with.
        metrics: where restarts are counted.
        clock: the monotonic clock, in seconds.
    """

    def __init__(
        self,
        command: list[str],
        *,
        work_dir: Path,
        config: ConfigFile,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._command = command
        self._socket_path = work_dir / "model-server.sock"
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self.address = f"unix:{self._socket_path}"

    async def run(self) -> None:
        """Keep the child alive until cancelled, which ends it; one that dies is restarted."""
        restarted = self._metrics.model_server_restarts.inc
        await children.keep_alive(self._run_once, "the model server", restarted, self._clock)

    async def _run_once(self) -> int:
        self._socket_path.unlink(missing_ok=True)
        is_own = tuple(self._command) == OWN_PROGRAM
        flags = [
            # Sluice's own needs no TCP port besides the socket; the original may not start without one, and
            # opens it on every interface.
            f"--port={0 if is_own else _free_port()}",
            # The original does not start while the newest version of one model cannot be loaded.
            *(["--listen_before_loading"] if is_own else []),
            f"--grpc_socket_path={self._socket_path}",
            f"--model_config_file={self._config.path}",
            "--file_system_poll_wait_seconds=1",
            # By default a version that does not load is retried every minute, without a word in between.
            f"--load_retry_interval_micros={LOAD_RETRY_INTERVAL_S * 1_000_000}",
        ]
        # Its own session: Ctrl-C in a terminal is for the gateway, which ends the child once it has drained.
        child = await asyncio.create_subprocess_exec(
            *self._command,
            *flags,
            env=grpc_environment.without_ours(),
            start_new_session=True,
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            preexec_fn=children.end_with_parent,
        )
        _log.info("the model server starts", pid=child.pid, program=self._command[0])
        assert child.stderr is not None
        passing = asyncio.create_task(_pass_on(child.stderr))
        try:
            return await child.wait()
        finally:
            await children.end(child, "the model server", TERMINATE_TIMEOUT_S)
            # Its last output; what it started itself may hold its stderr open for longer.
            await asyncio.wait([passing], timeout=LAST_WORDS_S)
            passing.cancel()


async def _pass_on(log: asyncio.StreamReader) -> None:
    """Pass on what a child writes to stderr, except for what TensorFlow says at every start."""
    stream = Lossy(lambda: sys.stderr)
    async for line in _lines(log):
        if not _CHATTER.match(line):
            stream.write(line.decode(errors="replace"))
            stream.flush()


async def _lines(log: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while True:
        try:
            line = await log.readline()
        except ValueError:  # a line beyond the reader's limit, which it has thrown away
            continue
        if not line:
            return
        yield line


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

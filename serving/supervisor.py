"""The model server that `sluice serve` runs as a child: started, kept alive, ended.

Any program that takes `tensorflow_model_server`'s flags will do. The gateway reaches it over a unix
socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import structlog
from google.protobuf import text_format

from serving import protos
from serving.errors import FailedPrecondition, InvalidInput
from serving.telemetry import Metrics

_log = structlog.get_logger()

FIRST_PAUSE_S = 0.5
MAX_PAUSE_S = 30.0
# A child that lived this long was fine: the next pause starts from the first again.
HEALTHY_AFTER_S = 60.0
TERMINATE_TIMEOUT_S = 10.0
LOAD_RETRY_INTERVAL_S = 1

OWN_PROGRAM = (sys.executable, "-m", "serving.modelserver")


def find_program(named: str | None) -> list[str]:
    """The command of the model server: `named`, which may have arguments, or Sluice's own.

    Raises:
        FailedPrecondition: there is no such program.
    """
    if named is None:
        return list(OWN_PROGRAM)
    words = shlex.split(named)
    if not words or shutil.which(words[0]) is None:
        raise FailedPrecondition(f'the model server "{named}" is not a program that can be found')
    return words


def find_models(models_dir: Path) -> list[str]:
    """The names of the models in a folder: its sub-folders with at least one version, sorted.

    Raises:
        InvalidInput: there is no such folder.
    """
    if not models_dir.is_dir():
        raise InvalidInput(
            f"there is no folder {models_dir}; train a model into it: "
            f"sluice train resnet --data digits --out {models_dir}"
        )
    return sorted(
        folder.name
        for folder in models_dir.iterdir()
        if folder.is_dir() and any(child.name.isdigit() for child in folder.iterdir())
    )


def model_config(models_dir: Path, names: Iterable[str]) -> Any:
    """A ModelServerConfig that serves the latest version of each named model of a folder."""
    config = protos.ModelServerConfig()
    for name in names:
        config.model_config_list.config.add(
            name=name, base_path=str((models_dir / name).resolve()), model_platform="tensorflow"
        )
    return config


class ModelServerProcess:
    """One model server, run as a child.

    Args:
        command: the program and its first arguments.
        work_dir: a folder of the caller's for the socket and the configuration.
        models_dir: the folder with a folder for each model.
        models: the names of the models to start with.
        metrics: where restarts are counted.
        clock: the monotonic clock, in seconds.
    """

    def __init__(
        self,
        command: list[str],
        *,
        work_dir: Path,
        models_dir: Path,
        models: Iterable[str],
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._command = command
        self._socket_path = work_dir / "model-server.sock"
        self._config_path = work_dir / "models.config"
        self._models_dir = models_dir
        self._metrics = metrics
        self._clock = clock
        self.address = f"unix:{self._socket_path}"
        self.write_config(models)

    def write_config(self, models: Iterable[str]) -> None:
        """Write the configuration that the next start reads."""
        self.write(model_config(self._models_dir, models))

    def write(self, config: Any) -> None:
        """Write this ModelServerConfig as the one that the next start reads."""
        self._config_path.write_text(text_format.MessageToString(config))

    async def run(self) -> None:
        """Keep the child alive until cancelled, which ends it; one that dies is started again."""
        pause_s = FIRST_PAUSE_S
        while True:
            started = self._clock()
            code = await self._run_once()
            pause_s = FIRST_PAUSE_S if self._clock() - started > HEALTHY_AFTER_S else pause_s
            _log.warning("the model server ended; starting it again", why=_describe(code), after_s=pause_s)
            self._metrics.model_server_restarts.inc()
            await asyncio.sleep(pause_s)
            pause_s = min(MAX_PAUSE_S, 2 * pause_s)

    async def _run_once(self) -> int:
        self._socket_path.unlink(missing_ok=True)
        flags = [
            # Sluice's own needs no TCP port beside the socket; the original may not start without one, and
            # opens it on every interface.
            f"--port={0 if tuple(self._command) == OWN_PROGRAM else _free_port()}",
            f"--grpc_socket_path={self._socket_path}",
            f"--model_config_file={self._config_path}",
            "--file_system_poll_wait_seconds=1",
            # By default a version that does not load is tried again each minute, and says nothing before.
            f"--load_retry_interval_micros={LOAD_RETRY_INTERVAL_S * 1_000_000}",
        ]
        # Its own session: Ctrl-C in a terminal is for the gateway, which ends the child once it has drained.
        child = await asyncio.create_subprocess_exec(
            *self._command, *flags, start_new_session=True, stdin=asyncio.subprocess.DEVNULL
        )
        _log.info("the model server starts", pid=child.pid, program=self._command[0])
        try:
            return await child.wait()
        finally:
            await _end(child)


async def _end(child: asyncio.subprocess.Process) -> None:
    """End a child that may have ended: politely, then after `TERMINATE_TIMEOUT_S` seconds for certain."""
    if child.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
    try:
        async with asyncio.timeout(TERMINATE_TIMEOUT_S):
            await child.wait()
    except TimeoutError:
        _log.warning("the model server does not end; killing it", pid=child.pid)
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _describe(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

"""Several gateway processes on the same two ports, for more cores than one interpreter can use.

The kernel balances connections over them (SO_REUSEPORT). Each is a whole gateway; what must be shared is kept
where all can see it: rollouts in their store, metrics and refusals by asking each other
(`serving.processes.peers`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

import structlog

from serving import ports
from serving.errors import InvalidInput
from serving.processes import children
from serving.processes.upstream import Upstream
from serving.settings import Settings

_log = structlog.get_logger()

# How long after the drain timeout a worker is killed.
END_GRACE_S = 5.0
# A worker names all its models in one line; asyncio's own limit is 64 KiB, some two thousand of them.
LONGEST_LINE_BYTES = 64 * 2**20


class Workers:
    """The workers of one gateway, as their parent sees them.

    Attributes:
        http_url: where all of them serve HTTP.
        grpc_address: where all of them serve gRPC.
    """

    def __init__(self, settings: Settings, upstream: Upstream, folder: Path) -> None:
        self._reserved = [
            _reserve("HTTP", settings.http_host, settings.http_port),
            _reserve("gRPC", settings.grpc_host, settings.grpc_port),
        ]
        http_port, grpc_port = (each.getsockname()[1] for each in self._reserved)
        self._settings = _share(settings, http_port, grpc_port)
        self._upstream = upstream
        self._folder = folder
        self._children: set[asyncio.subprocess.Process] = set()
        loop = asyncio.get_running_loop()
        self._listening: dict[str, asyncio.Future[None]] = {
            str(each): loop.create_future() for each in range(settings.workers)
        }
        self._models: asyncio.Future[dict[str, list[int]]] = loop.create_future()
        self.http_url = settings.http_url(http_port)
        self.grpc_address = settings.grpc_address(grpc_port)

    async def ready(self) -> dict[str, list[int]]:
        """The versions of each model, as soon as there are any of each."""
        return await asyncio.shield(self._models)

    async def listening(self) -> None:
        """Wait until every worker has opened its ports; raises InvalidInput if one says why it cannot."""
        await asyncio.gather(*self._listening.values())

    def dump(self) -> None:
        """Have every worker write its tasks' and threads' stacks to stderr."""
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGUSR1)

    def names(self) -> list[str]:
        """What the workers are called."""
        return list(self._listening)

    async def keep(self, name: str) -> NoReturn:
        """Keep one worker alive until cancelled, which drains and ends it."""
        await children.keep_alive(lambda: self._run_once(name), f"worker {name}")

    async def _run_once(self, name: str) -> int:
        # Its own session: Ctrl-C in a terminal is for the parent. stdin ends when the parent does.
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "serving.worker",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True,
            limit=LONGEST_LINE_BYTES,
        )  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        self._children.add(child)
        try:
            child.stdin.write(_job(self._settings, self._upstream, self._folder, name))
            async for line in child.stdout:
                if line.endswith(b"\n"):  # the last line of one that is killed may be cut off
                    self._hear(name, json.loads(line))
            return await child.wait()
        finally:
            timeout_s = self._settings.drain_timeout_s + END_GRACE_S
            await children.end(child, f"worker {name}", timeout_s)
            self._children.discard(child)

    def _hear(self, name: str, said: dict[str, Any]) -> None:
        """A worker's message: that it listens, which models it can answer for, or why it cannot start."""
        listening = self._listening[name]
        if "error" in said and not listening.done():
            listening.set_exception(InvalidInput(said["error"]))
        elif "error" in said:
            _log.warning(f"worker {name} cannot start again", error=said["error"])
        elif "listening" in said and not listening.done():
            listening.set_result(None)
        elif "models" in said and not self._models.done():
            self._models.set_result(said["models"])

    def close(self) -> None:
        """Give the ports back."""
        for each in self._reserved:
            each.close()


@asynccontextmanager
async def up(settings: Settings, upstream: Upstream, folder: Path) -> AsyncIterator[Workers]:
    """`settings.workers` gateways while the block runs; drained at its end.

    Args:
        settings: of all of them together.
        upstream: what is behind them.
        folder: an empty one, of this user alone, for the sockets on which they ask each other.

    Raises:
        InvalidInput: a port is in use.
    """
    workers = Workers(settings, upstream, folder)
    with contextlib.closing(workers):
        async with asyncio.TaskGroup() as tasks:
            kept = [tasks.create_task(workers.keep(name)) for name in workers.names()]
            try:
                await workers.listening()
                yield workers
            finally:
                for task in kept:
                    task.cancel()


def _reserve(protocol: str, host: str, port: int) -> socket.socket:
    """A socket that holds a port for the workers, and does not listen itself."""
    reserved = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        ports.check(host, port)  # SO_REUSEPORT alone would share it with another gateway's workers
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind((host, port))
    except OSError as error:
        reserved.close()
        raise ports.refusal(protocol, host, port, error) from error
    return reserved


def _share(settings: Settings, http_port: int, grpc_port: int) -> Settings:
    """One worker's settings, with its part of what is divided among them."""
    count = settings.workers
    return settings.model_copy(
        update={
            "http_port": http_port,
            "grpc_port": grpc_port,
            "max_in_flight": max(1, settings.max_in_flight // count),
            "max_in_flight_bytes": max(settings.max_body_bytes, settings.max_in_flight_bytes // count),
            "max_memory_bytes": settings.max_memory_bytes and max(1, settings.max_memory_bytes // count),
            "decode_threads": max(1, settings.decode_threads // count),
        }
    )


def _job(settings: Settings, upstream: Upstream, folder: Path, name: str) -> bytes:
    """What a worker reads first: a line of JSON."""
    about = {
        "settings": settings.model_dump(mode="json"),
        "upstream": upstream.as_json(),
        "folder": str(folder),
        "name": name,
    }
    return json.dumps(about).encode() + b"\n"

"""One live `sluice serve` with a real model for all who ask it; and a gateway over a scripted replica."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from serving.commands.serve import SAMPLE
from serving.main import Running
from tests.doors.replica import ScriptedReplica
from tests.support.fake_replica import running
from tests.support.gateways import gateway_over
from tests.support.processes import COMMAND, END_TIMEOUT_S, START_TIMEOUT_S


@dataclass(frozen=True)
class Live:
    """A running `sluice serve`, and what it says of the photograph over its own image API."""

    pid: int
    http_url: str
    grpc_address: str
    label: str
    index: int
    version: int

    @property
    def http_address(self) -> str:
        """Host and port."""
        return self.http_url.removeprefix("http://")


@pytest.fixture(scope="package")
def live(digits_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """`sluice serve` over digits/1; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("live")
    with (folder / "out").open("wb") as out, (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*COMMAND, "serve", f"--models={digits_models}", "--http-port=0", "--grpc-port=0"],
            stdout=out,
            stderr=log,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        try:
            yield _until_up(process, folder / "out")
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(END_TIMEOUT_S) == 0, (folder / "log").read_text()


def _until_up(process: subprocess.Popen[bytes], out: Path) -> Live:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        http = re.search(r"HTTP\s+(http://\S+)", out.read_text())
        grpc = re.search(r"gRPC\s+(\S+)", out.read_text())
        if http and grpc and httpx.get(f"{http[1]}/readyz").status_code == 200:
            answer = httpx.post(
                f"{http[1]}/v1/models/digits:classify",
                content=SAMPLE.read_bytes(),
                headers={"content-type": "image/png"},
                timeout=60,
            ).json()
            best = answer["results"][0]["classes"][0]
            return Live(process.pid, http[1], grpc[1], best["label"], best["index"], answer["version"])
        time.sleep(0.05)
    raise AssertionError(f"it did not come up: {out.read_text()}")


@pytest.fixture(scope="session")
def photograph() -> bytes:
    """The image that every client sends: a handwritten seven."""
    return SAMPLE.read_bytes()


@pytest.fixture
async def replica() -> AsyncIterator[ScriptedReplica]:
    """A replica that does what a test says."""
    async with running(ScriptedReplica()) as fake:
        yield fake  # type: ignore[misc]  # `running` gives back what it was given


@pytest.fixture
async def gateway(replica: ScriptedReplica) -> AsyncIterator[tuple[Running, httpx.AsyncClient]]:
    """A gateway over the replica, and an HTTP client of it."""
    async with gateway_over(replica) as both:
        yield both


@pytest.fixture
def client(gateway: tuple[Running, httpx.AsyncClient]) -> httpx.AsyncClient:
    """The HTTP client."""
    return gateway[1]


@pytest.fixture
def up(gateway: tuple[Running, httpx.AsyncClient]) -> Running:
    """The gateway."""
    return gateway[0]


@pytest.fixture
async def strict(replica: ScriptedReplica) -> AsyncIterator[tuple[Running, httpx.AsyncClient]]:
    """A gateway with little patience and small limits."""
    async with gateway_over(
        replica, header_timeout_s=1, body_grace_s=1, max_body_bytes=2**20, min_body_bytes_per_s=2**16
    ) as both:
        yield both


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """Where a test keeps its API keys; there is no file yet."""
    return tmp_path / "keys.toml"

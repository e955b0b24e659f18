"""A path to a replica that is cut without a word, in a network namespace: as root on Linux only."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

import pytest

from tests.chaos.test_faults import load, until_more
from tests.support.fake_replica import FakeReplica, running, until
from tests.support.gateways import gateway_over


class Path(NamedTuple):
    """A namespace behind a pair of virtual interfaces."""

    namespace: str
    inner: str
    address: str

    def set(self, state: str) -> None:
        """Cut the path (`down`: packets vanish), or mend it (`up`)."""
        ip("netns", "exec", self.namespace, "ip", "link", "set", self.inner, state)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def path() -> Iterator[Path]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("a network namespace needs root and the program ip")
    name, third = f"sl{os.getpid()}", os.getpid() % 250 + 1
    outer, inner = f"{name}o", f"{name}i"
    try:
        ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespace can be made here: {error.stderr.strip()}")
    try:
        ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
        ip("addr", "add", f"10.213.{third}.1/24", "dev", outer)
        ip("link", "set", outer, "up")
        for command in (
            ("addr", "add", f"10.213.{third}.2/24", "dev", inner),
            ("link", "set", inner, "up"),
        ):
            ip("netns", "exec", name, "ip", *command)
        yield Path(name, inner, f"10.213.{third}.2")
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("link", "del", outer)
        ip("netns", "del", name)


@contextlib.asynccontextmanager
async def replica_behind(path: Path) -> AsyncIterator[FakeReplica]:
    command = (sys.executable, "-m", "tests.chaos.replica_process", f"{path.address}:0")
    process = await asyncio.create_subprocess_exec(
        "ip", "netns", "exec", path.namespace, *command, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield FakeReplica(address=(await process.stdout.readline()).decode().strip())
    finally:
        process.kill()
        await process.wait()


async def test_a_path_that_is_cut_costs_nobody_an_answer_and_is_used_again_when_it_is_back(
    path: Path,
) -> None:
    async with (
        replica_behind(path) as far,
        running(FakeReplica()) as near,
        gateway_over(far, near, status_interval_s=0.3) as (up, _),
    ):
        await until(lambda: up.pool.availability("digits") == {1: 2})
        cut = up.pool.replicas[0]
        async with load(up.http_url, clients=8) as seen:
            await until_more(seen, 100)
            path.set("down")
            await until(lambda: not cut.reachable)
            await until_more(seen, 100)
            await until(lambda: cut.in_flight == 0)
            path.set("up")
            await until(lambda: cut.reachable, timeout_s=60)
            await until(lambda: cut.in_flight > 0, timeout_s=60)
            await until_more(seen, 100)
    assert set(seen) == {"200"}, seen

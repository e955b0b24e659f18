"""Several gateway processes on the same ports: one gateway for whoever looks at it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from serving.processes import workers
from serving.processes.work_folder import work_folder
from tests.support.fake_replica import FakeReplica, running, until
from tests.support.pictures import encoded, gradient
from tests.support.processes import COMMAND, LiveProcess, started

PATH = "/v1/models/digits:classify"
PNG = {"content-type": "image/png"}
PICTURE = encoded(gradient(), "PNG")
WAIT_S = 60.0


@asynccontextmanager
async def two_workers(
    *arguments: str, environment: dict[str, str] | None = None
) -> AsyncIterator[LiveProcess]:
    """`sluice gateway --workers 2` in front of a scripted replica."""
    async with running(FakeReplica()) as replica:
        command = ["gateway", f"--replica={replica.address}", "--model=digits", "--workers=2", *arguments]
        async with started(command, environment) as live:
            await until_both_ready(live)
            yield live


def workers_of(live: LiveProcess) -> list[psutil.Process]:
    return psutil.Process(live.pid).children()


async def post(live: LiveProcess, body: bytes = PICTURE) -> int:
    """One picture on a connection of its own, which any worker may get."""
    async with httpx.AsyncClient(base_url=live.http_url, timeout=60) as client:
        return (await client.post(PATH, content=body, headers=PNG)).status_code


async def metrics(live: LiveProcess, accept: str = "text/plain") -> str:
    async with httpx.AsyncClient(base_url=live.http_url, timeout=60) as client:
        return (await client.get("/metrics", headers={"accept": accept})).text


async def until_both_ready(live: LiveProcess) -> None:
    """Wait until both workers serve the model; /readyz, asked as they start, tells of one of them."""
    async with asyncio.timeout(WAIT_S):
        while (
            counts(await metrics(live), "sluice_model_version_state", "worker", state="AVAILABLE").total() < 2
        ):
            await asyncio.sleep(0.02)


def counts(page: str, name: str, label: str, **labels: str) -> Counter[str]:
    """The sum of a family's samples that have these labels by one more."""
    found: Counter[str] = Counter()
    for family in parse(page):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                found[sample.labels.get(label, "")] += int(sample.value)
    return found


async def until_both_count(live: LiveProcess, limit: int = 400) -> int:
    """Post until each worker has answered something; how many were posted."""
    for sent in range(1, limit):
        assert await post(live) == 200
        if sent % 10 == 0 and len(+counts(await metrics(live), "sluice_requests_total", "worker")) == 2:
            return sent
    raise AssertionError(f"one worker got none of {limit} connections")


async def test_whichever_worker_is_asked_the_metrics_are_of_all() -> None:
    async with two_workers() as live:
        good = await until_both_count(live)
        bad = [await post(live, b"no picture") for _ in range(20)]
        pages = [await metrics(live) for _ in range(6)]
        exact = [+counts(page, "sluice_requests_total", "outcome") for page in pages]
        durations = [
            sum(counts(page, "sluice_request_duration_seconds_count", "worker").values()) for page in pages
        ]
        openmetrics = await metrics(live, "application/openmetrics-text; version=1.0.0")
        async with httpx.AsyncClient(base_url=live.http_url) as client:
            state = (await client.get("/page/state")).json()
    assert set(bad) == {400}
    assert exact == [{"ok": good, "bad-image": len(bad)}] * len(pages)
    assert durations == [good + len(bad)] * len(pages)
    assert set(counts(pages[0], "process_start_time_seconds", "worker")) == {"0", "1", "parent"}
    assert {
        family.name
        for family in parse_openmetrics(openmetrics)  # type: ignore[no-untyped-call]
    } >= {"sluice_requests", "sluice_build"}
    assert len(state["refusals"]) == len(bad)
    assert state["in_flight_limit"] == 1024


async def test_a_worker_that_is_killed_comes_back() -> None:
    async with two_workers() as live:
        before = workers_of(live)
        assert len(before) == 2
        before[0].send_signal(signal.SIGKILL)
        await until_back(live, before[0].pid)
        await until_both_count(live)


async def until_back(live: LiveProcess, killed: int) -> None:
    """Wait until another worker has taken the place of the one that was killed, and both serve the model."""
    async with asyncio.timeout(WAIT_S):
        while len({each.pid for each in workers_of(live)} - {killed}) < 2:
            await asyncio.sleep(0.05)
    await until_both_ready(live)


async def until_refused(live: LiveProcess) -> None:
    """Wait until no worker takes connections any more."""
    host, _, port = live.http_url.removeprefix("http://").rpartition(":")
    with contextlib.suppress(ConnectionRefusedError):
        async with asyncio.timeout(WAIT_S):
            while True:
                _, writer = await asyncio.open_connection(host, int(port))
                writer.close()
                await asyncio.sleep(0.02)


async def test_sigterm_drains_all_and_gives_the_ports_back() -> None:
    release = asyncio.Event()

    async def held(_request: object) -> None:
        await release.wait()

    async with running(FakeReplica(before_predict=held)) as replica:
        command = ["gateway", f"--replica={replica.address}", "--model=digits", "--workers=2"]
        async with started(command) as live:
            await until_both_ready(live)
            asked = [asyncio.create_task(post(live)) for _ in range(16)]
            async with asyncio.timeout(WAIT_S):
                while sum(counts(await metrics(live), "sluice_requests_in_flight", "worker").values()) < 16:
                    await asyncio.sleep(0.02)
            children = workers_of(live)
            ended = asyncio.create_task(live.end())
            await until_refused(live)
            assert not any(each.done() for each in asked)
            release.set()
            answers = await asyncio.gather(*asked)
            code = await ended
            assert answers == [200] * 16
            assert code == 0
            assert not any(each.is_running() for each in children)
            with pytest.raises(httpx.ConnectError):
                await post(live)


async def test_workers_end_with_a_parent_that_is_killed() -> None:
    async with two_workers() as live:
        children = workers_of(live)
        await live.end(signal.SIGKILL)
        gone, alive = await asyncio.to_thread(psutil.wait_procs, children, WAIT_S)
    assert alive == []
    assert len(gone) == 2


def only_one_in(parent: Path) -> Path:
    (child,) = parent.iterdir()
    return child


async def test_the_next_start_leaves_the_folder_to_workers_that_drain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)  # where it is kept once it has been found
    release, entered = asyncio.Event(), asyncio.Event()

    async def held(_request: object) -> None:
        entered.set()
        await release.wait()

    async with running(FakeReplica(before_predict=held)) as replica:
        command = ["gateway", f"--replica={replica.address}", "--model=digits", "--workers=2"]
        async with started(command) as live:
            asked = asyncio.create_task(post(live))
            await entered.wait()
            children = workers_of(live)
            folder = only_one_in(tmp_path)
            live.process.kill()
            await until(lambda: children[0].ppid() != live.pid)
            with work_folder():
                assert folder.is_dir()
            release.set()
            assert await asked == 200
            assert await live.process.wait() == -signal.SIGKILL
            await asyncio.to_thread(psutil.wait_procs, children, WAIT_S)
            with work_folder():
                assert not folder.exists()


async def test_workers_end_with_a_parent_that_is_killed_before_any_model_is_ready() -> None:
    arguments = ["--replica=127.0.0.1:1", "--model=digits", "--workers=2", "--http-port=0", "--grpc-port=0"]
    parent = await asyncio.create_subprocess_exec(
        *COMMAND,
        "gateway",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert parent.stdout is not None
    async with asyncio.timeout(WAIT_S):
        while not (await parent.stdout.readline()).startswith(b"HTTP"):
            assert parent.returncode is None
    children = psutil.Process(parent.pid).children()
    assert len(children) == 2
    parent.kill()
    try:
        await parent.wait()
        _, alive = await asyncio.to_thread(psutil.wait_procs, children, WAIT_S)
        assert alive == []
    finally:
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


async def test_why_a_worker_cannot_be_started_again_is_said(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text("")
    async with two_workers(environment={"SLUICE_KEYS_FILE": str(keys)}) as live:
        keys.write_text("nonsense")
        workers_of(live)[0].kill()
        async with asyncio.timeout(WAIT_S):
            while not any("cannot start again" in line for line in live.errors):
                await asyncio.sleep(0.05)
    (told, *_) = [json.loads(line) for line in live.errors if "cannot start again" in line]
    assert f"{keys} is not TOML" in told["error"]


async def test_a_worker_comes_back_though_the_file_of_settings_is_being_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands there by now is for the parent's next start."""
    monkeypatch.chdir(tmp_path)
    async with two_workers(environment={"PYTHONPATH": str(Path(workers.__file__).parents[2])}) as live:
        (tmp_path / "sluice.toml").write_text("http_prot = ")
        (killed, _) = workers_of(live)
        killed.kill()
        await until_back(live, killed.pid)


async def run_to_its_end(*arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
    child = await asyncio.create_subprocess_exec(
        *COMMAND,
        *arguments,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    )
    async with asyncio.timeout(WAIT_S):
        _, errors = await child.communicate()
    assert child.returncode is not None
    return child.returncode, errors.decode()


async def test_a_port_that_another_gateway_has_is_refused() -> None:
    async with two_workers() as live:
        port = live.http_url.rpartition(":")[2]
        code, errors = await run_to_its_end(
            "gateway", "--replica=127.0.0.1:1", "--model=digits", "--workers=2", f"--http-port={port}"
        )
    assert code == 2
    assert f"cannot listen on 127.0.0.1:{port} for HTTP: Address already in use; --http-port names" in errors


async def test_what_a_worker_finds_wrong_is_said_once_and_ends_it(tmp_path: Path) -> None:
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("nothing")
    code, errors = await run_to_its_end(
        "gateway",
        "--replica=127.0.0.1:1",
        "--model=digits",
        "--workers=2",
        "--http-port=0",
        "--grpc-port=0",
        environment={
            "SLUICE_TLS_CERTIFICATE": str(tmp_path / "cert.pem"),
            "SLUICE_TLS_KEY": str(tmp_path / "key.pem"),
        },
    )
    assert code == 2
    assert errors.count("error:") == 1
    assert "cannot use" in errors


async def test_the_stacks_of_all_can_be_had() -> None:
    async with two_workers() as live:
        leads = [os.getsid(each.pid) == each.pid for each in workers_of(live)]
        assert leads == [True, True], "Ctrl-C in the parent's terminal is not for them"
        live.process.send_signal(signal.SIGUSR1)
        await until(lambda: sum("Thread MainThread" in line for line in live.errors) == 2)

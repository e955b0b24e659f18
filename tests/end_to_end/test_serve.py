"""`sluice serve` with the real model server and a real model, through what happens to it in life."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import psutil
import pytest

from serving.commands.serve import SAMPLE
from tests.support.processes import LiveProcess, started

CLASSIFY = "/v1/models/digits:classify"
PNG = {"content-type": "image/png"}


@pytest.fixture
def models(digits_models: Path, tmp_path: Path) -> Path:
    """A folder of models of the test's own, with digits/1."""
    return Path(shutil.copytree(digits_models, tmp_path / "models"))


@contextlib.asynccontextmanager
async def serving(models: Path) -> AsyncIterator[tuple[LiveProcess, httpx.AsyncClient]]:
    """`sluice serve` over a folder, and a client of it."""
    async with (
        started(["serve", f"--models={models}"]) as live,
        httpx.AsyncClient(base_url=live.http_url, timeout=60) as client,
    ):
        yield live, client


def model_server_of(live: LiveProcess) -> psutil.Process:
    (child,) = psutil.Process(live.pid).children()
    return child


async def post_sample(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post(CLASSIFY, content=SAMPLE.read_bytes(), headers=PNG)


@contextlib.asynccontextmanager
async def load(live: LiveProcess, clients: int = 8) -> AsyncIterator[Counter[str]]:
    """Clients that post the sample without pause while the block runs; what became of each request."""
    seen: Counter[str] = Counter()
    stop = asyncio.Event()

    async def post() -> None:
        async with httpx.AsyncClient(base_url=live.http_url, timeout=60) as client:
            while not stop.is_set():
                try:
                    answer = await post_sample(client)
                except httpx.ConnectError:
                    seen["refused connection"] += 1
                    return
                except httpx.TransportError as error:
                    seen[f"lost: {error!r}"] += 1
                    return
                seen[f"{answer.status_code} by {answer.json().get('version')}"] += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(clients):
            tasks.create_task(post())
        try:
            yield seen
        finally:
            stop.set()


async def until_seen(seen: Counter[str], key: str, at_least: int = 1) -> None:
    async with asyncio.timeout(120):
        while seen[key] < at_least:
            await asyncio.sleep(0.02)


async def test_the_sample_is_a_seven(models: Path) -> None:
    async with serving(models) as (live, client):
        found = (await post_sample(client)).json()
        assert (found["model"], found["version"]) == ("digits", 1)
        best = found["results"][0]["classes"][0]
        assert best["label"] == "7"
        assert best["score"] > 0.5
        assert any("curl --data-binary" in line for line in live.lines)
        assert await live.end() == 0


@pytest.mark.timeout(400)
async def test_a_killed_model_server_comes_back_and_ends_with_a_killed_gateway(models: Path) -> None:
    async with serving(models) as (live, client):
        assert (await post_sample(client)).status_code == 200
        # A model that cannot be loaded is there, too; it must not keep the other away.
        (models / "broken" / "1").mkdir(parents=True)
        (models / "broken" / "1" / "saved_model.pb").write_bytes(b"no graph")
        async with asyncio.timeout(120):
            while (await client.get("/readyz")).json()["missing"] != ["broken"]:
                await asyncio.sleep(0.05)
        first = model_server_of(live)
        first.kill()
        async with asyncio.timeout(120):
            while (answer := await post_sample(client)).status_code == 200:
                await asyncio.sleep(0)
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
            while (answer := await post_sample(client)).status_code != 200:
                assert answer.status_code == 503, answer.text
                await asyncio.sleep(0.05)
        second = model_server_of(live)
        assert second.pid != first.pid
        assert any("killed by SIGKILL" in line for line in live.errors)
        assert any("Loading servable" in line for line in live.errors)
        assert not any("oneDNN" in line for line in live.errors)
        await live.end(signal.SIGKILL)
        gone, _ = await asyncio.to_thread(psutil.wait_procs, [second], 120)
        assert gone == [second]


async def test_sigterm_under_load_answers_every_request_that_was_accepted(models: Path) -> None:
    async with started(["serve", f"--models={models}"]) as live:
        child = model_server_of(live)
        async with load(live) as seen:
            await until_seen(seen, "200 by 1", at_least=50)
            assert await live.end(signal.SIGTERM) == 0
        assert set(seen) == {"200 by 1", "refused connection"}, seen
        assert not child.is_running()


async def test_publishing_a_version_under_load_fails_no_request(models: Path) -> None:
    async with started(["serve", f"--models={models}"]) as live:
        async with load(live) as seen:
            await until_seen(seen, "200 by 1", at_least=50)
            publish_copy(models, 2)
            await until_seen(seen, "200 by 2", at_least=50)
        assert set(seen) == {"200 by 1", "200 by 2"}, seen


def publish_copy(models: Path, version: int) -> None:
    """Publish version 1 again under another number, by rename."""
    staged = models / "digits" / ".staged"
    shutil.copytree(models / "digits" / "1", staged)
    staged.rename(models / "digits" / str(version))


async def states(client: httpx.AsyncClient) -> dict[int, tuple[str, str | None]]:
    (model,) = (await client.get("/v1/models")).json()["models"]
    return {each["version"]: (each["state"], each["error"]) for each in model["versions"]}


async def test_broken_versions_leave_the_good_one_serving_and_say_why(models: Path) -> None:
    async with serving(models) as (_live, client):
        (models / "digits" / "abc").mkdir()
        corrupt = models / "digits" / ".corrupt"
        corrupt.mkdir()
        (corrupt / "saved_model.pb").write_bytes(b"\xffnonsense")
        corrupt.rename(models / "digits" / "7")
        async with asyncio.timeout(120):
            while not (await states(client)).get(7, ("", None))[1]:
                await asyncio.sleep(0.05)
        found = await states(client)
        assert found[7][0] == "END"
        assert found[1] == ("AVAILABLE", None)
        assert "abc" not in str(found)
        assert (await post_sample(client)).json()["version"] == 1
        (models / "digits" / "8").mkdir()
        async with asyncio.timeout(120):
            while not (await states(client)).get(8, ("", None))[1]:
                await asyncio.sleep(0.05)
        assert (await post_sample(client)).json()["version"] == 1


async def test_a_model_that_appears_later_is_served(models: Path) -> None:
    async with serving(models) as (_live, client):
        staged = models / ".staged"
        shutil.copytree(models / "digits", staged)
        staged.rename(models / "numbers")
        async with asyncio.timeout(120):
            while True:
                answer = await client.post(
                    "/v1/models/numbers:classify", content=SAMPLE.read_bytes(), headers=PNG
                )
                if answer.status_code == 200:
                    break
                await asyncio.sleep(0.05)
        assert answer.json()["model"] == "numbers"
        assert (await post_sample(client)).status_code == 200


async def run(*arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Run `sluice ARGUMENTS`; exit code, stdout, stderr."""
    import sys

    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "serving.cli",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_the_command_line_classifies_and_lists(models: Path, tmp_path: Path) -> None:
    async with started(["serve", f"--models={models}"]) as live:
        url = f"--url={live.http_url}"
        code, out, _ = await run("classify", str(SAMPLE), url)
        assert code == 0
        assert "7" in out
        assert "digits" in out
        nonsense = tmp_path / "nonsense.png"
        nonsense.write_bytes(b"nonsense")
        code, out, err = await run("classify", str(nonsense), str(SAMPLE), url)
        assert code == 1
        assert "not an image" in out + err
        code, out, _ = await run("models", url)
        assert code == 0
        assert "AVAILABLE" in out


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["serve", "--models=/nowhere"], 2, "there is no folder /nowhere; train a model into it"),
        (["serve", "--models=EMPTY"], 2, "holds no model; train one"),
        (
            ["serve", "--models=README.md"],
            2,
            "README.md is not a folder; it must hold a folder for each model",
        ),
        (
            ["serve", "--models=EMPTY", "--model-server=/no/such/program"],
            1,
            "not a program that can be found",
        ),
        (["gateway", "--model=digits"], 2, "no replica is named"),
        (["gateway", "--replica=localhost:1"], 2, "no model is named"),
        (["models", "--url=http://127.0.0.1:1"], 2, "no gateway answers at http://127.0.0.1:1"),
        (
            ["models", "--url=localhost:8080"],
            2,
            '"localhost:8080" is not the address of a gateway; it must begin',
        ),
    ],
)
async def test_wrong_commands_say_what_would_be_right(
    arguments: list[str], code: int, text: str, tmp_path: Path
) -> None:
    found, _, err = await run(*(each.replace("EMPTY", str(tmp_path)) for each in arguments))
    assert found == code
    assert text in err
    assert err.startswith("error: ")
    assert "Traceback" not in err


async def test_help_lists_every_command_and_each_has_its_own() -> None:
    code, out, _ = await run("--help", environment={"COLUMNS": "120"})
    assert code == 0
    for command in ("train", "publish", "serve", "gateway", "model-server", "classify", "models"):
        assert command in out
        found, text, _ = await run(command, "--help", environment={"COLUMNS": "120"})
        assert found == 0
        assert "--" in text

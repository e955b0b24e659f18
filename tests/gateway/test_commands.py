"""What the commands say when something is wrong, as far as it needs no process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import itertools
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from serving.commands import asking, serve
from serving.commands.app import build
from serving.commands.terminal import user_errors
from serving.commands.top import Scrape, parse, rows, view
from serving.errors import FailedPrecondition, InvalidInput, SluiceError
from serving.modelserver import server
from serving.processes import supervisor
from serving.rest.server import listen
from serving.rollout import access


def test_an_error_of_the_system_is_a_line_that_names_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, user_errors():
        Path("/nowhere/plan.yaml").read_text()
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err == "error: /nowhere/plan.yaml: No such file or directory\n"
    with pytest.raises(typer.Exit), user_errors(), Path("/dev/full").open("w") as full:
        full.write("what a command prints")
    assert capsys.readouterr().err == "error: No space left on device\n"


def test_a_port_that_is_taken_comes_with_a_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(typer.Exit) as ended, user_errors():
        listen("127.0.0.1", taken.getsockname()[1])
    assert ended.value.exit_code == 2
    assert capsys.readouterr().err.endswith("in use; --http-port names another, 0 any free one\n")


class NeverReady:
    """A gateway none of whose models can be loaded."""

    http_url = "http://127.0.0.1:9"
    grpc_address = "127.0.0.1:9"

    async def ready(self) -> dict[str, list[int]]:
        await asyncio.Event().wait()
        return {}


async def test_the_demo_gives_up_on_models_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "_DEMO_TIMEOUT_S", 0.05)
    with pytest.raises(SluiceError, match="no version of every model could be loaded within"):
        await serve._post_sample(NeverReady())


@pytest.mark.parametrize("key", ["s3cret\n", "two s3cret", "s3crét"])
def test_what_cannot_be_a_key_is_said_without_it(key: str) -> None:
    for connect in (asking.connection, access.GatewayAccess):
        with pytest.raises(InvalidInput, match="the API key has a character that no key has") as refused:
            connect("http://127.0.0.1:9", key)
        assert "s3cr" not in refused.value.message


@asynccontextmanager
async def answering(content: bytes | None, status: str = "200 OK") -> AsyncIterator[str]:
    """A server that answers this to every request, or nothing at all; its address."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            if content is not None:
                head = f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
                writer.write(head.encode() + content)
                await writer.drain()
            await reader.read()  # until the client leaves
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield "http://{}:{}".format(*server.sockets[0].getsockname())


async def sluice(*arguments: str, code: int, key: str = "") -> str:
    """What a command prints; it runs in a thread, since what it asks is in this process."""
    invoke = CliRunner(env={"SLUICE_API_KEY": key, "COLUMNS": "200"}).invoke
    result = await asyncio.to_thread(invoke, build(), arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    return result.output


UNAUTHENTICATED = b'{"type": "urn:sluice:problem:unauthenticated", "detail": "the key is not valid"}'

ASK = (["models", "--url"], ["top", "--once", "--interval=0.1", "--url"], ["rollout", "status", "--gateway"])


@pytest.mark.parametrize("ask", ASK, ids=lambda each: each[0])
@pytest.mark.parametrize("content", [b"<html>Welcome!</html>", b"[]", b"", b"python_info 1\n"])
async def test_what_no_gateway_answers_is_told_as_that(ask: list[str], content: bytes) -> None:
    async with answering(content) as url:
        told = await sluice(*ask, url, code=1)
    assert told.startswith(("error: http://127.0.0.1:", "error: the gateway at http://127.0.0.1:"))
    assert "Sluice gateway" in told


@pytest.mark.parametrize("ask", ASK, ids=lambda each: each[0])
async def test_a_gateway_that_is_slow_is_told_from_one_that_is_away(
    ask: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (asking, access):
        monkeypatch.setattr(module, "_TIMEOUT_S", 0.2)
    async with answering(None) as url:
        told = await sluice(*ask, url, code=1)
        assert told == f"error: {url} did not answer within 0.2 s\n"
        abort = await sluice("rollout", "abort", "digits", "--gateway", url, code=1)
        assert "did not answer within 0.2 s; `sluice rollout status` says whether it was carried out" in abort


@pytest.mark.parametrize("ask", ASK, ids=lambda each: each[0])
async def test_a_key_that_is_wrong_is_told_from_one_that_is_missing(ask: list[str]) -> None:
    async with answering(UNAUTHENTICATED, "401 Unauthorized") as url:
        assert "it requires a key: pass --api-key" in await sluice(*ask, url, code=2)
        assert "it does not take the API key that was given" in await sluice(
            *ask, url, code=2, key="sluice_x"
        )


async def test_a_missing_key_is_said_once_for_all_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for index in range(8):
        (tmp_path / f"{index}.png").write_bytes(b"x")
    asked = itertools.count()
    refused = asyncio.Semaphore(0)

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            if next(asked) == 0:  # the others fail before it does
                for _ in range(4):
                    await refused.acquire()
            writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: %d\r\n" % len(UNAUTHENTICATED))
            writer.write(b"Connection: close\r\n\r\n" + UNAUTHENTICATED)
            await writer.drain()
            await reader.read()  # until the client leaves
        refused.release()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        url = "http://{}:{}".format(*server.sockets[0].getsockname())
        told = await sluice("classify", str(tmp_path), "--json", "--url", url, code=2)
    assert told == (
        "error: the gateway refused: it requires a key: pass --api-key, or better set SLUICE_API_KEY\n"
    )
    gc.collect()  # a task tells of an exception that nobody asked for when it is collected
    assert "never retrieved" not in caplog.text


async def test_what_replicas_say_is_no_markup() -> None:
    error = "Cannot assign a device [/job:localhost] to [bold]node[/bold] :warning:"
    version = {"version": 2, "state": "END", "available_on": 0, "error": error}
    answer = {"models": [{"name": "digits", "default": True, "versions": [version]}]}
    async with answering(json.dumps(answer).encode()) as url:
        assert error in await sluice("models", "--url", url, code=0)


def scraped(at: float, answered: int, late: int) -> Scrape:
    """A metrics page: so many requests, of which so many took over a tenth of a second."""
    of = 'model="digits",version="1",protocol="http"'
    buckets = {"0.1": answered - late, "1.0": answered, "+Inf": answered}
    lines = [f'sluice_request_duration_seconds_bucket{{{of},le="{le}"}} {n}' for le, n in buckets.items()]
    lines.append(f'sluice_requests_total{{{of},arm="",outcome="ok"}} {answered}')
    return parse("\n".join(lines) + "\n", at)


def test_top_counts_anew_after_a_restart() -> None:
    (row,) = rows(scraped(10.0, 1000, 0), scraped(12.0, 1100, 100))
    assert (row.requests_per_s, row.failed_per_s) == (50.0, 0.0)
    assert 0.1 < row.median_s < row.p99_s < 1.0
    (row,) = rows(scraped(10.0, 1000, 0), scraped(12.0, 20, 0))
    assert (row.requests_per_s, row.failed_per_s) == (10.0, 0.0)
    assert 0.0 < row.median_s < row.p99_s < 0.1


def test_top_shows_what_reached_no_version_only_where_there_was_such_a_thing() -> None:
    def page(unknown: int) -> Scrape:
        rest = 'protocol="http",arm="",outcome="overloaded"'
        return parse(
            f'sluice_requests_total{{model="",version="",{rest}}} {unknown}\n'
            f'sluice_requests_total{{model="digits",version="",{rest}}} 0\n'
            f'sluice_requests_total{{model="digits",version="1",{rest}}} 0\n',
            1.0,
        )

    assert [(row.model, row.version) for row in rows(page(0), page(0))] == [("digits", "1")]
    assert [(row.model, row.version) for row in rows(page(1), page(1))] == [("", ""), ("digits", "1")]


def test_top_shows_once_what_each_of_several_workers_sees() -> None:
    page = "".join(
        f'sluice_replica_up{{replica="a:1",worker="{worker}"}} {worker}\n'
        f'sluice_replica_up{{replica="b:1",worker="{worker}"}} 0\n'
        f'sluice_model_version_replicas{{model="digits",version="2",worker="{worker}"}} 1\n'
        for worker in (0, 1)
    )
    scrape, shown = parse(page, 1.0), io.StringIO()
    Console(file=shown).print(view(scrape, scrape))
    assert "1 of 2 replicas up" in shown.getvalue()
    assert "on how many replicas versions are: digits 2: 1\n" in shown.getvalue()


def test_without_tensorflow_the_model_server_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(supervisor, "find_spec", lambda _name: None)
    monkeypatch.setattr(server, "find_spec", lambda _name: None)
    with pytest.raises(FailedPrecondition, match=r"pip install 'sluice\[model-server\]', or name another"):
        supervisor.find_program(None)
    assert supervisor.find_program("true") == ["true"]
    assert server.run(["--model_name=m", "--model_base_path=/models/m"]) == server.START_FAILED
    assert "The model server needs TensorFlow" in capsys.readouterr().err


@pytest.mark.parametrize("imported", ["typer", "serving.commands.models", "serving.modelserver.server"])
def test_ctrl_c_while_commands_are_still_imported_shows_no_stack_trace(imported: str) -> None:
    """Which takes half a second, in which people see that they mistyped."""
    script = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[2]:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
sys.meta_path.insert(0, Interrupting())
from serving.cli import main
main()
"""
    command = "model-server" if "modelserver" in imported else "models"
    done = subprocess.run(
        [sys.executable, "-c", script, command, imported], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@dataclass
class Serving:
    """What is up, with models that are ready."""

    models: dict[str, list[int]]
    http_url: str = "http://127.0.0.1:8080"
    grpc_address: str = "127.0.0.1:8081"

    async def ready(self) -> dict[str, list[int]]:
        return self.models


@pytest.mark.parametrize(
    ("models", "tried"),
    [({"cifar": [1], "digits": [2]}, "digits"), ({"cifar": [1], "flowers": [1]}, "cifar")],
)
async def test_what_to_try_is_the_samples_own_model(
    capfd: pytest.CaptureFixture[str], models: dict[str, list[int]], tried: str
) -> None:
    announcing = asyncio.create_task(serve.announce(Serving(models), asks_for_a_key=False))
    said = ""
    while "curl" not in said and not announcing.done():
        await asyncio.sleep(0)
        said += capfd.readouterr().out
    announcing.cancel()
    assert f"/v1/models/{tried}:classify" in said

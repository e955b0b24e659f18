"""What the commands say when something is wrong, as far as it needs no process of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import typer

from serving import commands
from serving.errors import SluiceError
from serving.rest.server import listen


def test_an_error_of_the_system_is_a_line_that_names_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, commands.user_errors():
        Path("/nowhere/plan.yaml").read_text()
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err == "error: /nowhere/plan.yaml: No such file or directory\n"


def test_a_port_that_is_taken_comes_with_a_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(typer.Exit) as ended, commands.user_errors():
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
    monkeypatch.setattr(commands, "_DEMO_TIMEOUT_S", 0.05)
    with pytest.raises(SluiceError, match="no version of every model could be loaded within"):
        await commands._post_sample(NeverReady())

"""One of several workers: `python -m serving.worker`, run by `serving.processes.workers` and by nobody else.

Reads a line of JSON on stdin that says what to do, and writes a line on stdout once it can answer, or when it
cannot start. When stdin ends its parent has died, and it drains as on SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from serving import main
from serving.errors import SluiceError, innermost
from serving.processes.peers import Peers
from serving.processes.upstream import Upstream
from serving.processes.work_folder import kept
from serving.settings import Settings
from serving.telemetry.logs import configure_logging


class _Given(Settings):
    """The parent's settings as they are: what the file says by now counts from the parent's next start."""

    @classmethod
    def settings_customise_sources(  # type: ignore[override]  # the rest is passed over
        cls, _settings_cls: Any, *, init_settings: Any, **_others: Any
    ) -> tuple[Any, ...]:
        """Only what is given, neither the environment nor the file."""
        return (init_settings,)


async def run(about: dict[str, Any]) -> None:
    """Be the worker that `about` describes, until the parent ends."""

    async def while_up(running: main.Up) -> None:
        _say({"listening": True})
        async with asyncio.TaskGroup() as tasks:
            telling = tasks.create_task(_tell_models(running))
            await _end_of_stdin()  # the parent may die before any model is ready
            telling.cancel()

    folder, upstream = Path(about["folder"]), Upstream.from_json(about["upstream"])
    of_model_server = () if upstream.config is None else (upstream.config.path.parent,)
    with kept(folder, *of_model_server):
        await main.run_one(
            _Given(**about["settings"]),
            upstream,
            main.new_metrics(),
            while_up,
            Peers(folder, about["name"]),
        )


async def _tell_models(running: main.Up) -> None:
    _say({"models": await running.ready()})


async def _end_of_stdin() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer
    )
    await reader.read()


def _say(what: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # the parent has died, as the end of stdin tells
        print(json.dumps(what), flush=True)


if __name__ == "__main__":
    configure_logging()
    try:
        main.run(run(json.loads(sys.stdin.buffer.readline())))
    except (SluiceError, ExceptionGroup) as error:
        found = innermost(error)
        if not isinstance(found, SluiceError):
            raise
        _say({"error": found.message})
        sys.exit(1)

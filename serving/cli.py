"""`sluice`: the one console command. Its sub-commands are entry points of the group `sluice.commands`.

Each package brings its own commands, so that `training` and `serving` need not know each other. What
commands need beyond typer they import when they run: `--help` answers in a fraction of a second.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from importlib.metadata import entry_points, version
from typing import Annotated

import typer

from serving import grpc_environment

GROUP = "sluice.commands"
_INTERRUPTED = 128 + signal.SIGINT  # as shells say it

# In the order in which people meet them; commands that are not named here follow, sorted.
_ORDER = (
    "recipes", "train", "publish", "inspect", "evaluate", "compare",
    "serve", "classify", "models", "top", "rollout", "gateway", "model-server", "keys", "demo",
)  # fmt: skip


def build() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(
        name="sluice",
        help="Train image classifiers, serve them with TensorFlow Serving, let new versions in by evidence.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    found = {point.name: point for point in entry_points(group=GROUP)}
    for name in sorted(found, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name)):
        command = found[name].load()
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"sluice {version('sluice')}")
        raise typer.Exit


def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Hold the options of `sluice` itself."""


def _open_standard_streams() -> None:
    """Have the null device for those that the parent closed, as some supervisors do.

    Their numbers would go to the next files and connections, where whatever writes to stderr would write;
    and the event loop's library ends the process rather than close one of them.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode))


def main() -> None:
    """The entry point of the console command."""
    _open_standard_streams()
    grpc_environment.prepare()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # File names are any bytes, and labels any text: what the terminal has no letters for is escaped.
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.argv[1:2] == ["model-server"]:
        # Its flags are tensorflow_model_server's, in that program's forms; it reads them itself.
        from serving import modelserver

        if sys.argv[2:] in (["-h"], ["--help"]):
            print(modelserver.usage())
            return
        sys.exit(modelserver.main(sys.argv[2:]))
    try:
        build()()
    except KeyboardInterrupt:  # while commands are imported: one that runs tells of it itself
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()

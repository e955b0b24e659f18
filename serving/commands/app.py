"""The one console command, `sluice`. Its sub-commands are entry points of the group `sluice.commands`.

Each package brings its own commands, so that `training` and `serving` need not know each other. What
commands need beyond typer they import when they run: `--help` answers in a fraction of a second.
"""

from __future__ import annotations

from importlib.metadata import entry_points, version
from typing import Annotated

import typer

GROUP = "sluice.commands"

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

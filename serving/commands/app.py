"""The console command, `sluice`. Its subcommands are entry points of the group `sluice.commands`.

Each package registers its own commands, so that `training` and `serving` need not know each other. Commands
import whatever they need beyond typer when they run, so that `--help` answers in a fraction of a second.
"""

from __future__ import annotations

from importlib.metadata import entry_points, version
from typing import Annotated

import typer

GROUP = "sluice.commands"

# In the order in which people need them; commands not listed here follow, sorted by name.
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
    """Carries the options of `sluice` itself."""

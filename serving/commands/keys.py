"""The command `keys`: makes, lists and revokes the API keys of a file. A running gateway follows the file."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serving.commands.terminal import console, user_errors
from serving.errors import Conflict, InvalidInput, NotFound

if TYPE_CHECKING:  # imported when the command runs, so that --help stays fast
    from serving.access.keys import KeyEntry, KeyFile

File = Annotated[Path, typer.Option(envvar="SLUICE_KEYS_FILE", help="The file of keys.")]
DEFAULT_FILE = Path("keys.toml")

keys = typer.Typer(
    help="Make, list and revoke API keys. A gateway takes the file as --keys and follows its changes.",
    no_args_is_help=True,
)


@keys.command()
def add(
    name: Annotated[str, typer.Argument(help="Who the key is for.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="What it may do: classify, admin; repeatable.", show_default="classify"),
    ] = None,
    rate: Annotated[str | None, typer.Option(help="Rate limit, such as 20/second or 1000/hour.")] = None,
    max_concurrent: Annotated[
        int | None, typer.Option(min=1, help="Most requests in flight at once.")
    ] = None,
    file: File = DEFAULT_FILE,
) -> None:
    """Make a key and print it, once: the file keeps only its hash."""
    with user_errors(), _to_itself(file):
        from serving.access.keys import new_key

        found = _read(file)
        if any(each.name == name for each in found.keys):
            raise Conflict(f"{file} has a key of the name {name}; revoke it first, or take another name")
        key, entry = new_key(name, scope or ["classify"], rate, max_concurrent)
        _write(file, [*found.keys, entry])
        print(key)


@keys.command("list")
def list_(file: File = DEFAULT_FILE) -> None:
    """List the keys of the file; the keys themselves are not kept."""
    with user_errors():
        from rich.table import Table

        table = Table("name", "id", "scopes", "rate", "max concurrent")
        for each in _read_existing(file).keys:
            most = "" if each.max_concurrent is None else str(each.max_concurrent)
            table.add_row(each.name, each.id, ", ".join(each.scopes), each.rate or "", most)
        console().print(table)


@keys.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Whose key.")],
    file: File = DEFAULT_FILE,
) -> None:
    """Take a key out of the file; running gateways refuse it within two seconds."""
    with user_errors(), _to_itself(file):
        found = _read_existing(file)
        kept = [each for each in found.keys if each.name != name]
        if len(kept) == len(found.keys):
            there = ", ".join(each.name for each in kept) or "none"
            raise NotFound(f"{file} has no key of the name {name}; there are: {there}")
        _write(file, kept)


@contextmanager
def _to_itself(file: Path) -> Iterator[None]:
    """Keep other commands from changing the file in the block: one of the two changes would be lost.

    The folder is locked, since the file is replaced, and a lock would stay with the old one.

    Raises:
        InvalidInput: the folder is not there.
    """
    try:
        folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        raise InvalidInput(f"there is no folder {file.parent} to write {file.name} into") from None
    try:
        flock(folder, LOCK_EX)
        yield
    finally:
        os.close(folder)


def _read(file: Path) -> KeyFile:
    from serving.access.keys import KeyFile, parse

    if not file.exists():
        return KeyFile()
    try:
        return parse(file.read_text("utf-8"), str(file))
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{file} is not UTF-8: {error.reason}") from None


def _read_existing(file: Path) -> KeyFile:
    if not file.exists():
        raise NotFound(f"there is no file {file}; `sluice keys add NAME` makes it, --file names another")
    return _read(file)


def _write(file: Path, entries: list[KeyEntry]) -> None:
    """Replace the file as a whole, readable by its owner only."""
    text = "# API keys of a Sluice gateway, as hashes; `sluice keys` writes this file.\n"
    for each in entries:
        text += "\n[[keys]]\n"
        shown = each.model_dump(exclude_none=True)
        text += "".join(f"{name} = {_in_toml(value)}\n" for name, value in shown.items())
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            os.fsync(stream.fileno())
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _in_toml(value: object) -> str:
    """A string, a number or a list of strings as TOML has it.

    JSON writes them the same way, except for characters that it writes as two escapes, neither of which TOML
    accepts; and TOML wants DEL escaped, which JSON does not.
    """
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

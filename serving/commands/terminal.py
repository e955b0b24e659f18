"""What commands print, and how their errors end them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from serving.errors import InvalidInput, SluiceError, innermost

if TYPE_CHECKING:  # imported when a command runs, so that --help stays fast
    from rich.console import Console


def printable(text: str) -> str:
    """Text that others wrote, such as a model's label: what would control the terminal is escaped."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def console() -> Console:
    """A terminal for text that others wrote, such as a replica's error: nothing in it is markup."""
    from rich.console import Console

    return Console(markup=False, emoji=False)


@contextmanager
def user_errors(otherwise: int = 1) -> Iterator[None]:
    """Errors as one line on stderr: exit 2 for what the user can mend, `otherwise` for the rest.

    A reader of stdout that has seen enough (`| head`) is not reported as an error: BrokenPipeError goes on to
    typer, which exits with 1 and says nothing.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # what fails here would otherwise fail where nobody catches it
    except (SluiceError, OSError, ExceptionGroup) as error:
        first = innermost(error)
        if isinstance(first, BrokenPipeError):
            raise first from None
        if not isinstance(first, SluiceError | OSError):
            raise
        text = str(first)
        if isinstance(first, OSError) and first.strerror:
            text = f"{first.filename}: {first.strerror}" if first.filename else first.strerror
        print(f"error: {text}", file=sys.stderr)
        raise typer.Exit(2 if isinstance(first, InvalidInput) else otherwise) from None

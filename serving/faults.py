"""What pydantic finds wrong with a value, in words for who wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

Location = tuple[str | int, ...]


def told(error: ValidationError, *, of: str, with_input: bool = True) -> str:
    """Every fault, as `field: fault`.

    Args:
        error: what was found.
        of: what to call the whole, where a fault is not a field's.
        with_input: say what was given; not for what may be a secret.
    """
    return "; ".join(
        f"{dotted(each['loc']) or of}: {message(each, with_input=with_input)}" for each in error.errors()
    )


def message(fault: Mapping[str, Any], *, with_input: bool = True) -> str:
    """One of pydantic's faults: what is wrong and, of plain values, what was given."""
    if fault["type"] == "extra_forbidden":
        return "there is no such field"
    if fault["type"] == "json_invalid":
        return f"not JSON: {fault['ctx']['error']}"
    text: str = fault["msg"].removeprefix("Value error, ")
    text = text[:1].lower() + text[1:]
    given = fault["input"]
    if with_input and (isinstance(given, str) or not isinstance(given, Mapping | Sequence)):
        text += f", got {given!r}"[:200]
    return text


def dotted(location: Location) -> str:
    """A place in nested values, such as `canary[0].weight`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")

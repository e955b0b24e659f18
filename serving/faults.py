"""What pydantic finds wrong with a value, in words for the person who wrote it."""

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


def of_closest(found: Sequence[Mapping[str, Any]]) -> list[tuple[Location, Mapping[str, Any]]]:
    """Faults of a body that may have one of several forms (a union): those of the form that it is closest to.

    Args:
        found: pydantic's faults, at `body`, the form's class, then the field.

    Returns:
        Each with its place, the form left out of it.
    """
    forms: dict[str, list[tuple[Location, Mapping[str, Any]]]] = {}
    for each in found:
        place: Location = tuple(each["loc"])
        form = str(place[1]) if len(place) > 2 else ""
        if not form[:1].isupper():  # a field's name, and no class's
            return [(tuple(other["loc"]), other) for other in found]
        forms.setdefault(form, []).append(((place[0], *place[2:]), each))
    return min(forms.values(), key=lambda of: (sum(e["type"] == "extra_forbidden" for _, e in of), len(of)))


def dotted(location: Location) -> str:
    """A place in nested values, such as `canary[0].weight`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")

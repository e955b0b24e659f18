"""The file that names the classes of a foreign model: one label per line, in the order of the scores."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from training.errors import BadInput

# Lines of a table: index and label, or label and index.
_TABLES = (
    re.compile(r"\s*(?P<number>\d+)\s*[,;\t](?P<label>.+)"),
    re.compile(r"(?P<label>.+)[,;\t]\s*(?P<number>\d+)\s*"),
)
# A label that begins with a number, which may be part of it.
_COUNTED = re.compile(r"(?P<number>\d+)[ .:)-]+(?P<label>.+)")


def read_labels(path: Path) -> tuple[str, ...]:
    """One label per line; raises `BadInput` for any other file, such as a table of index and label."""
    try:
        labels = tuple(path.read_text(encoding="utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise BadInput(f"--labels {path}: {reason}; pass a text file with one label per line") from error
    if blank := [number for number, label in enumerate(labels, start=1) if not label.strip()]:
        raise BadInput(f"{path}: line {blank[0]} is blank")
    if any(_are_numbered(lines, table) for table in _TABLES for lines in (labels, labels[1:])):  # a heading
        raise BadInput(
            f"{path} numbers its labels, as in {labels[-1]!r}; each line must be just a label: leave the"
            " numbers out, and keep the lines in the order of the scores"
        )
    return labels


def _are_numbered(lines: Sequence[str], numbered: re.Pattern[str]) -> bool:
    """Whether these lines are a table of distinct labels, numbered consecutively from 0 or 1."""
    rows = [match.groupdict() for match in map(numbered.fullmatch, lines) if match]
    numbers = sorted(int(row["number"]) for row in rows)
    count = len(lines)
    return (
        count > 1
        and numbers in ([*range(count)], [*range(1, count + 1)])
        and len({row["label"] for row in rows}) == count  # unlike in 0,5 mm and 1,5 mm
    )


def begin_with_numbers(labels: Sequence[str]) -> bool:
    """Whether all begin with consecutive numbers, as in `0 red`, `1 green`; these may be part of them."""
    return _are_numbered(labels, _COUNTED)

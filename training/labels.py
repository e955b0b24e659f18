"""The file that names the classes of a model of one's own: a label a line, in the order of the scores."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from training.errors import BadInput

# Lines of a table, of index and label or of label and index.
_TABLES = (
    re.compile(r"\s*(?P<number>\d+)\s*[,;\t](?P<label>.+)"),
    re.compile(r"(?P<label>.+)[,;\t]\s*(?P<number>\d+)\s*"),
)
# Of a label that begins with a number, which may be its own.
_COUNTED = re.compile(r"(?P<number>\d+)[ .:)-]+(?P<label>.+)")


def read_labels(path: Path) -> tuple[str, ...]:
    """One label a line; raises `BadInput` for what is no such file, such as a table of index and label."""
    try:
        labels = tuple(path.read_text(encoding="utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise BadInput(f"--labels {path}: {reason}; it is a text file with a label a line") from error
    if blank := [number for number, label in enumerate(labels, start=1) if not label.strip()]:
        raise BadInput(f"{path}: line {blank[0]} is blank")
    if any(_are_numbered(lines, table) for table in _TABLES for lines in (labels, labels[1:])):  # a heading
        raise BadInput(
            f"{path} numbers its labels, as in {labels[-1]!r}; a line is a label and nothing else: leave the"
            " numbers out, and keep the lines in the order of the scores"
        )
    return labels


def _are_numbered(lines: Sequence[str], numbered: re.Pattern[str]) -> bool:
    """Whether these are a table: of different labels, with the numbers from 0 or 1 on beside them."""
    rows = [match.groupdict() for match in map(numbered.fullmatch, lines) if match]
    numbers = sorted(int(row["number"]) for row in rows)
    count = len(lines)
    return (
        count > 1
        and numbers in ([*range(count)], [*range(1, count + 1)])
        and len({row["label"] for row in rows}) == count  # unlike those of 0,5 mm and 1,5 mm
    )


def begin_with_numbers(labels: Sequence[str]) -> bool:
    """Whether they do, as `0 red` and `1 green` do: by numbers that count the lines, or are part of them."""
    return _are_numbered(labels, _COUNTED)

"""The file of a rollout's record: JSON with a line for each field and for each event, the events last.

A rollout is saved at every look, and each of its events holds all the evidence there was. Events never
change, so whoever reads and writes one record again and again need not parse or format those it knows.
"""

from __future__ import annotations

import json
import math
import operator
from dataclasses import dataclass
from typing import Any

from serving.errors import InvalidInput
from serving.rollout.record import Event, Rollout, event_to_json, fields_to_json, from_json

_BEGIN = b'\n "events": [\n'
_END = b"\n ]\n}\n"
_NEXT = b",\n"


@dataclass(frozen=True, slots=True)
class RecordFile:
    """A record's file as it was read.

    Attributes:
        content: What it holds.
        rollout: What that says.
        events_at: Where the lines of its events begin. 0: it has none, or they are written otherwise, as by
            older releases.
    """

    content: bytes
    rollout: Rollout
    events_at: int

    @property
    def events(self) -> bytes:
        """The lines of its events, up to the last one's end."""
        return self.content[self.events_at : -len(_END)] if self.events_at else b""


def read(content: bytes, last: RecordFile | None = None) -> RecordFile:
    """What a file says; quickly, if it has the events that were read last, and maybe more.

    Raises:
        InvalidInput: It is not a record; the message says why.
    """
    if last is not None and last.content == content:
        return last
    rollout = None if last is None else _continued(content, last)
    if rollout is None:
        rollout = from_json(parsed(content))
    return RecordFile(content, rollout, _events_at(content, len(rollout.events)))


def written(rollout: Rollout, last: RecordFile | None = None) -> bytes:
    """The content for a rollout; the lines of events that it shares with what was read last are copied."""
    lines, events = [], rollout.events
    if last is not None and last.events_at and _begin_with(events, last.rollout.events):
        lines, events = [last.events], events[len(last.rollout.events) :]
    lines += [b"  " + _line(event_to_json(event)) for event in events]
    fields = [b" %s: %s" % (_line(name), _line(value)) for name, value in fields_to_json(rollout).items()]
    head = b"{\n" + _NEXT.join(fields) + b","
    return head + (_BEGIN + _NEXT.join(lines) + _END if lines else b'\n "events": []\n}\n')


def _continued(content: bytes, last: RecordFile) -> Rollout | None:
    """The rollout, if its events begin with those read last, under the same plan: their shapes depend on it.

    A null is parsed in their place, so that what stands around them must be right for a value.
    """
    at, known = content.find(_BEGIN) + len(_BEGIN), last.events
    if not known or not content.startswith(known, at):
        return None
    values = parsed(b"%snull%s" % (content[:at], content[at + len(known) :]))
    events = values.get("events") if isinstance(values, dict) else None
    if not isinstance(events, list) or events[:1] != [None]:
        return None
    rollout = from_json(values | {"events": events[1:]}, last.rollout.events)
    return rollout if rollout.plan == last.rollout.plan else None


def _events_at(content: bytes, count: int) -> int:
    """Where the lines of so many events begin, if the file ends with them; else 0."""
    at = content.find(_BEGIN) + len(_BEGIN)
    end = len(content) - len(_END)
    found = len(_BEGIN) <= at <= end and content.endswith(_END) and content.count(b"\n", at, end) + 1 == count
    return at if found else 0


def _begin_with(events: tuple[Event, ...], known: tuple[Event, ...]) -> bool:
    return len(events) >= len(known) and all(map(operator.is_, events, known))


def parsed(content: bytes) -> Any:
    """The values of a file's JSON, whether or not they are a record's; raises InvalidInput."""
    try:
        return json.loads(content, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"not JSON: {error}") from error


def _line(values: Any) -> bytes:
    return json.dumps(values, allow_nan=False).encode()


def _finite(number: str) -> float:
    """A number of a record. NaN and infinity could not be saved again."""
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is not the number of a record")
    return value

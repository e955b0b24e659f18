"""The file of a record: what it looks like, what older ones mean, and what need not be done again."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.errors import InvalidInput
from serving.rollout.machine import Phase, State
from serving.rollout.record import Rollout, to_json
from serving.rollout.record_file import RecordFile, read, written
from serving.rollout.store import FileStore
from tests.rollout.stored import new_rollout, walk


@pytest.fixture(scope="module")
def good() -> Rollout:
    return walk(new_rollout(), bad_rate=0.01)


def of_older_release(rollout: Rollout) -> bytes:
    """One number in a line, and the events not last."""
    values = to_json(rollout)
    events = values.pop("events")
    values |= {"events": events, "told": values.pop("told")}
    return json.dumps(values, indent=1).encode()


def outcome(content: bytes, last: RecordFile | None) -> Any:
    try:
        return to_json(read(content, last).rollout)
    except InvalidInput:
        return "not a record"


def test_each_field_and_each_event_has_a_line(good: Rollout) -> None:
    content = written(good)
    assert json.loads(content) == to_json(good)
    names = [line.split(b":")[0] for line in content.splitlines()]
    assert names[1:4] == [b' "format"', b' "revision"', b' "id"']
    assert names.count(b'  {"at"') == len(good.events)
    assert json.loads(written(new_rollout())) == to_json(new_rollout())


def test_events_are_parsed_and_formatted_once(tmp_path: Path, good: Rollout) -> None:
    store = FileStore(tmp_path)
    store.save(good)
    first = store.load("digits")
    assert first is not None
    store.save(replace(first, clock_s=7.0).moved(State(Phase.PROMOTED), None, 1e9))
    second = FileStore(tmp_path).load("digits"), store.load("digits")
    assert [each and (each.clock_s, len(each.events)) for each in second] == [(7.0, len(good.events) + 1)] * 2
    assert second[0] is not None
    assert second[1] is not None
    assert all(a is b for a, b in zip(first.events, second[1].events, strict=False))
    assert to_json(second[0]) == to_json(second[1])
    assert first.events[-1].ledger is not None
    first.events[-1].ledger.compared[:] = np.nan  # no JSON: it would fail if it were formatted
    store.save(replace(second[1], clock_s=8.0))
    assert json.loads((tmp_path / "digits.json").read_bytes())["clock_s"] == 8.0


def test_what_did_not_change_is_not_parsed_at_all(tmp_path: Path, good: Rollout) -> None:
    store = FileStore(tmp_path)
    store.save(good)
    assert store.load("digits") is store.load("digits")


def test_a_file_of_an_older_release_is_read_and_then_written_in_lines(tmp_path: Path, good: Rollout) -> None:
    store, path, older = FileStore(tmp_path), tmp_path / "digits.json", of_older_release(good)
    path.write_bytes(older)
    found = store.load("digits")
    assert found is not None
    assert to_json(found) == to_json(good)
    saved = store.save(replace(found, clock_s=500.0))
    assert (tmp_path / "digits.previous.json").read_bytes() == older
    assert path.read_bytes() == written(saved)


@pytest.mark.parametrize("form", [written, of_older_release])
def test_what_was_read_before_changes_nothing_about_what_a_file_says(good: Rollout, form: Any) -> None:
    """Whatever somebody makes of the file: a damaged one is refused, an edited one means what it says."""
    last, draw = read(form(good)), random.Random(1)
    longer = form(replace(good.moved(State(Phase.PROMOTED), None, 2e9), clock_s=9.0))
    seen = set()
    for content in (last.content, longer):
        for _ in range(60):
            at = draw.randrange(len(content))
            for edited in (
                content[:at],
                content[:at] + content[at + 1 :],
                content[:at] + draw.choice([b",", b"]", b"}", b"\n", b"1", b'"']) + content[at:],
            ):
                expected = outcome(edited, None)
                seen.add(expected == "not a record")
                assert outcome(edited, last) == expected
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"accuracy": {"margin": 0.5, ', b'"accuracy": null, "beauty": {"margin": 0.5, '),
        (b'\n "events": [\n', b'\n "events": [\n  "an event",\n'),
        (b"\n ]\n}\n", b",\n ]\n}\n"),
        (b"\n ]\n}\n", b'\n ],\n "events": []\n}\n'),
        (b'\n "events": [\n', b'\n "events": [],\n "others": [\n'),
    ],
)
def test_what_is_edited_around_the_events_means_what_it_says(good: Rollout, old: bytes, new: bytes) -> None:
    last = read(written(good))
    edited = last.content.replace(old, new, 1)
    assert edited != last.content
    assert outcome(edited, last) == outcome(edited, None)


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"", b""), (b"\n ]\n}\n", b'\n ],\n "by": 1\n}\n'), (b"\n ]\n}\n", b'\n ],\n "events": [\n ]\n}\n')],
)
def test_what_was_read_before_changes_nothing_about_what_is_written(
    good: Rollout, old: bytes, new: bytes
) -> None:
    last = read(written(good).replace(old, new, 1))
    for rollout in (last.rollout, good, walk(new_rollout(), bad_rate=0.1), new_rollout()):
        assert json.loads(written(rollout, last)) == to_json(rollout)

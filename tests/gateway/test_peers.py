"""What the workers of one gateway tell each other."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from serving.processes import peers
from serving.processes.peers import Merged, Peers, samples
from serving.telemetry.series import Counter


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_each_hears_what_the_others_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "TIMEOUT_S", 3600.0)
    names = "0", "1", "parent"
    one, other, parent = (Peers(tmp_path, name) for name in names)
    async with asyncio.timeout(60):
        async with one.answering({"load": lambda: 1}), other.answering({"load": lambda: {"calls": [2]}}):
            assert await one.ask("load") == {"1": {"calls": [2]}}
            assert await parent.ask("load") == {"0": 1, "1": {"calls": [2]}}
            assert await one.ask("what is none") == {}
        assert await one.ask("load") == {}
    assert files_in(tmp_path) == []


async def test_one_that_was_killed_or_hangs_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "TIMEOUT_S", 0.2)
    released = asyncio.Event()

    async def hang(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await released.wait()
        writer.close()

    with socket.socket(socket.AF_UNIX) as of_one_that_was_killed:
        of_one_that_was_killed.bind(str(tmp_path / "0.peer"))
    hanging = await asyncio.start_unix_server(hang, tmp_path / "1.peer")
    async with hanging, Peers(tmp_path, "2").answering({"load": lambda: 2}):
        assert await Peers(tmp_path, "3").ask("load") == {"2": 2}
        # The next one of that name takes its place.
        async with Peers(tmp_path, "0").answering({"load": lambda: 0}):
            assert await Peers(tmp_path, "3").ask("load") == {"0": 0, "2": 2}
        released.set()


async def test_the_metrics_of_all_are_told_with_whose_they_are() -> None:
    registry = CollectorRegistry()
    counter = Counter("asked", "How often it was asked.", ("by",), registry=registry)
    counter.labels("me").inc(2, {"trace_id": "ab"})
    own = await samples(registry)
    carried = json.loads(json.dumps(own))
    (family,) = Merged({"0": own, "1": carried}).collect()
    assert (family.name, family.documentation, family.type) == ("asked", "How often it was asked.", "counter")
    totals = [each for each in family.samples if each.name == "asked_total"]
    assert [(each.labels, each.value) for each in totals] == [
        ({"by": "me", "worker": worker}, 2.0) for worker in ("0", "1")
    ]
    assert [each.exemplar and each.exemplar.labels for each in totals] == [{"trace_id": "ab"}] * 2

"""What the long runs (`make chaos`, `make soak`) and those beside a test conclude from what they see."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos import soak
from tests.chaos.flood import Flood, _flood
from tests.chaos.overload import Overload
from tests.chaos.soak import Reading, Soak
from tests.support.beside import beside

MIB = 2**20


def soaked(start_mib: float, end_mib: float, files: int = 0) -> Soak:
    """Half an hour in which one process grows evenly after it has settled, and opens so many files more."""
    count, settling = 360, 60
    readings = []
    for index in range(count):
        share = max(0, index - settling) / (count - settling)
        rss_bytes = int((start_mib + share * (end_mib - start_mib)) * MIB)
        readings.append(Reading(5.0 * index, rss_bytes, 40 + round(share * files), 12))
    return Soak(Counter(image=9), [], [0.01, 0.02], {"gateway": readings}, 29)


@pytest.mark.parametrize(
    ("soaked", "passed"),
    [
        (soaked(100.0, 100.0), True),
        (soaked(100.0, 101.0), True),
        (soaked(100.0, 103.0), False),
        (soaked(100.0, 80.0), True),
        (soaked(100.0, 100.0, files=2), True),
        (soaked(100.0, 100.0, files=5), False),
        (replace(soaked(100.0, 100.0), wrong=["Classify: UNAVAILABLE"]), False),
        (replace(soaked(100.0, 100.0), readings={}), False),
    ],
)
def test_a_soak_passes_if_every_answer_is_right_and_nothing_grows(soaked: Soak, passed: bool) -> None:
    assert soak.report(soaked)["passed"] is passed


HELD = Overload(
    capacity_per_s=300.0,
    asked_per_s=3000.0,
    goodput=0.95,
    late=0.0,
    admitted_p50_ms=1700.0,
    admitted_p99_ms=1800.0,
    refused_p50_ms=1.0,
    refused_p99_ms=15.0,
    statuses={"200": 19_000, "503": 160_000},
    unsent=0,
    rss_mib=(100.0, 150.0, 110.0),
    after=1.0,
    client_cpu_share=0.1,
    gateway_cpu_share=0.6,
)


def test_an_overload_is_held_if_every_figure_is() -> None:
    assert HELD.held()
    for worse in (
        replace(HELD, goodput=0.85),
        replace(HELD, late=0.02),
        replace(HELD, refused_p50_ms=6.0),
        replace(HELD, rss_mib=(100.0, 450.0, 110.0)),
        replace(HELD, rss_mib=(100.0, 150.0, 160.0)),
        replace(HELD, after=0.99),
        replace(HELD, unsent=1),
        replace(HELD, statuses={"200": 19_000, "500": 1}),
        replace(HELD, statuses={"200": 19_000, "0": 1}),
    ):
        assert not worse.held(), worse


@pytest.mark.parametrize(("answer_s", "deadline_s", "is_late"), [(0.0, 5.0, False), (0.1, 0.01, True)])
async def test_a_flood_counts_what_comes_in_time_and_what_does_not(
    answer_s: float, deadline_s: float, is_late: bool, tmp_path: Path
) -> None:
    (tmp_path / "body").write_bytes(b"picture")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(10_000):
            await asyncio.sleep(answer_s)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        url = "http://{}:{}/v1/classify".format(*server.sockets[0].getsockname())
        asked = Flood(url, str(tmp_path / "body"), 50.0, 0.4, deadline_s)
        seen = await _flood(asked, b"picture")
    assert (set(seen.statuses), seen.statuses["200"], seen.unsent) == ({"200"}, seen.sent, 0)
    assert 2 <= seen.sent <= 21
    assert seen.late == (seen.sent if is_late else 0)
    if is_late:  # the last ones were not answered while more were asked
        assert seen.per_s * 0.4 < seen.sent - 1


async def test_a_caller_who_is_cut_off_beside_a_test_fails_it() -> None:
    async def cut_off() -> None:
        raise ConnectionResetError

    ended = asyncio.Event()

    async def asks_on() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(ExceptionGroup) as failed:
        async with beside(cut_off(), asks_on()):
            await asyncio.sleep(0)
    assert failed.group_contains(ConnectionResetError, depth=1)
    assert ended.is_set()
    async with beside(asks_on()):
        await asyncio.sleep(0)

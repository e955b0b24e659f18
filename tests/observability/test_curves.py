"""The evidence of rollouts is kept between their moves, and does not grow without end."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import pytest

from serving.errors import SluiceError, Unavailable
from serving.page.curves import MOST_POINTS, Curves
from serving.rollout import ledger as ledgers
from serving.rollout.plan import Plan
from serving.rollout.record import Rollout

ROLLOUT = Rollout("digits-2", "digits", 1, 2, Plan(), 0.0)


def at(clock_s: float) -> Rollout:
    """The rollout as it is at a moment of its own clock."""
    return replace(ROLLOUT, clock_s=clock_s, ledger=ledgers.empty(ledgers.tests_of(ROLLOUT.plan)))


def test_points_between_moves_are_kept_in_order_and_once() -> None:
    curves = Curves(list)
    for second in (0, 2, 2, 4):
        curves.see([at(second)])
    assert [clock_s for clock_s, _ in curves.of(at(5.0))] == [0, 2, 4, 5.0]
    assert [clock_s for clock_s, _ in curves.of(at(4.0))] == [0, 2, 4]


def test_a_long_curve_is_thinned_evenly_and_stays_whole() -> None:
    curves = Curves(list)
    for second in range(0, 4_000, 2):
        curves.see([at(second)])
    points = [clock_s for clock_s, _ in curves.of(at(4_000))]
    assert MOST_POINTS / 3 < len(points) <= MOST_POINTS + 2
    assert (points[0], points[-1]) == (0, 4_000)
    gaps = [later - earlier for earlier, later in itertools.pairwise(points)]
    assert max(gaps) <= 4 * min(gaps[:-1])


def test_a_rollout_that_is_over_and_followed_by_another_is_forgotten() -> None:
    curves = Curves(list)
    curves.see([at(1.0)])
    curves.see([replace(at(3.0), id="digits-3")])
    assert [clock_s for clock_s, _ in curves.of(at(9.0))] == [9.0]


@pytest.mark.parametrize("error", [Unavailable("the API server is away"), OSError(5, "Input/output error")])
async def test_rollouts_that_cannot_be_read_end_no_watch(error: SluiceError | OSError) -> None:
    def reads() -> Iterator[list[Rollout]]:
        yield [at(1.0)]
        raise error

    looked, script = asyncio.Event(), reads()
    loop = asyncio.get_running_loop()

    def newest() -> list[Rollout]:
        try:
            return next(script)
        except StopIteration:
            loop.call_soon_threadsafe(looked.set)
            return [at(3.0)]

    curves = Curves(newest, interval_s=0.0)
    watching = asyncio.create_task(curves.watch())
    seen = asyncio.create_task(looked.wait())
    done, _ = await asyncio.wait((watching, seen), timeout=20, return_when=asyncio.FIRST_COMPLETED)
    assert done == {seen}, "it looks again after a look that failed"
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    assert next(clock_s for clock_s, _ in curves.of(at(9.0))) == 1.0, "what was seen before is kept"

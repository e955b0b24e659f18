"""The evidence of rollouts between their moves, kept while nobody looks, so that the page has whole curves.

A rollout's record has the evidence only at each move. What is kept here is this process's own and bounded: a
curve that grows too long keeps every second point, and from then on adds half as many.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from serving.errors import SluiceError

if TYPE_CHECKING:  # it brings numerics that a gateway without rollouts does not need
    from serving.rollout.ledger import Ledger
    from serving.rollout.record import Rollout

_log = structlog.get_logger()

# What a small picture can show.
MOST_POINTS = 200
WATCH_INTERVAL_S = 2.0

Evidence = Mapping[str, Mapping[str, float]]
"""By criterion, how far the evidence is on the way to either decision; see `evidence_of`."""


@dataclass(slots=True)
class _Curve:
    points: list[tuple[float, Evidence]] = field(default_factory=list)
    step_s: float = 0.0


class Curves:
    """Remembers the evidence of the newest rollout of each model.

    Args:
        newest: reads these rollouts; it may wait for a disk.
        interval_s: how often `watch` looks.
    """

    def __init__(self, newest: Callable[[], list[Rollout]], interval_s: float = WATCH_INTERVAL_S) -> None:
        self._newest = newest
        self._interval_s = interval_s
        self._curves: dict[str, _Curve] = {}

    async def watch(self) -> None:
        """Look for ever. If rollouts cannot be read the log says so, and the next look tries again."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                found = await asyncio.to_thread(self._newest)
            except (SluiceError, OSError) as error:
                _log.warning("the curves of rollouts have a gap: they cannot be read", error=str(error))
            else:
                self.see(found)

    def see(self, rollouts: list[Rollout]) -> None:
        """Keep the present evidence of these rollouts, and forget all others."""
        self._curves = {each.id: self._curves.get(each.id, _Curve()) for each in rollouts}
        for rollout in rollouts:
            if rollout.ledger is not None:
                _extend(self._curves[rollout.id], rollout)

    def of(self, rollout: Rollout) -> list[tuple[float, Evidence]]:
        """The evidence so far, by the rollout's own clock: at its moves, between them, and now."""
        seen = self._curves.get(rollout.id, _Curve()).points
        moves = [
            (each.clock_s, evidence_of(rollout, each.ledger))
            for each in rollout.events
            if each.ledger is not None
        ]
        found = dict([*seen, *moves, (rollout.clock_s, evidence_of(rollout, rollout.evidence))])
        return sorted(found.items(), key=lambda point: point[0])


def _extend(curve: _Curve, rollout: Rollout) -> None:
    points, clock_s = curve.points, rollout.clock_s
    if points and clock_s - points[-1][0] <= curve.step_s:
        return
    points.append((clock_s, evidence_of(rollout, rollout.evidence)))
    if len(points) > MOST_POINTS:
        curve.step_s = 2 * max(curve.step_s, (clock_s - points[0][0]) / len(points))
        del points[1::2]


def evidence_of(rollout: Rollout, ledger: Ledger) -> Evidence:
    """By criterion, how far the evidence is on the way to a decision: log e over the log of its limit.

    `worse` and `good` are 1 where the rollout decides, 0 where nothing is known, negative where the evidence
    speaks against it.
    """
    from serving.rollout.judge import alphas, signals

    levels = alphas(rollout.plan)
    found = signals(rollout.plan, ledger, shadow=False).criteria
    return {
        name: {
            "worse": _finite(float(signal.log_worse) / -math.log(levels[name])),
            "good": _finite(float(signal.log_good) / -math.log(rollout.plan.alpha_promote)),
        }
        for name, signal in found.items()
    }


def _finite(number: float) -> float:
    return round(max(-10.0, min(10.0, number)), 4)

"""Replicas that answer, but fail much more often than the others: left alone for a while.

After Envoy's outlier detection by success rate. The breaker sees failures in a row; this sees a replica that
fails every other call. Fleets here are small, so the comparison is with the rest of the fleet and not with a
standard deviation. Only calls for the same version are compared: one that fails wherever it is asked tells of
no replica, and who alone has it must not be left alone with all that it has besides.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

WINDOW_S = 10.0
# Fewer calls in a window say nothing.
LEAST_CALLS = 20
# A replica is an outlier if its success rate is below this multiple of others' by more than chance has it:
# so many standard errors of as many calls that succeed as often as theirs.
TOLERANCE = 0.85
_CHANCE = 3.0
FIRST_EJECTION_S = 5.0
MAX_EJECTION_S = 60.0
# Who was well for so long after an ejection is ejected for the shortest time again.
WELL_AFTER_S = 60.0


Version = tuple[str, int]
"""A model, and the number of one of its versions."""


class Rate(NamedTuple):
    """The share of calls that were answered, and of how many."""

    share: float
    calls: int


@dataclass(slots=True)
class Outcomes:
    """The calls of one replica in the current window and the one before; when it may be used again."""

    ejected_until: float = 0.0
    ejections: int = 0
    _window: int = 0
    _current: Counter[tuple[Version, bool]] = field(default_factory=Counter)
    _before: Counter[tuple[Version, bool]] = field(default_factory=Counter)

    def add(self, of: Version, *, failed: bool, now: float) -> None:
        """A call for a version ended at `now`."""
        self._turn(now)
        self._current[of, failed] += 1

    def success_rate(self, of: Version, now: float) -> Rate | None:
        """How often a version's calls were answered; None if there were too few to tell."""
        self._turn(now)
        answered, failed = (self._current[of, each] + self._before[of, each] for each in (False, True))
        calls = answered + failed
        return None if calls < LEAST_CALLS else Rate(answered / calls, calls)

    def eject(self, now: float) -> None:
        """Leave the replica alone, longer each time that follows soon, and judge it afresh afterwards."""
        self.ejections = self.ejections + 1 if now - self.ejected_until < WELL_AFTER_S else 1
        self.ejected_until = now + min(MAX_EJECTION_S, FIRST_EJECTION_S * self.ejections)
        self._current, self._before = Counter(), Counter()

    def _turn(self, now: float) -> None:
        window = int(now / WINDOW_S)
        if window == self._window:
            return
        self._before = self._current if window == self._window + 1 else Counter()
        self._current = Counter()
        self._window = window


def is_outlier(replica: Outcomes, others: Sequence[Outcomes], of: Version, now: float) -> bool:
    """Whether to leave `replica` alone for how it does with a version, given the other replicas.

    At most half of a fleet is ever left alone: those that remain would drown.
    """
    in_use = [each for each in others if each.ejected_until <= now]
    if len(in_use) < len(others) - len(in_use) + 1:
        return False
    rate = replica.success_rate(of, now)
    shares = [found.share for each in in_use if (found := each.success_rate(of, now)) is not None]
    if rate is None or not shares:
        return False
    usual = sum(shares) / len(shares)
    by_chance = _CHANCE * math.sqrt(usual * (1.0 - usual) / rate.calls)
    return rate.share < TOLERANCE * usual - by_chance

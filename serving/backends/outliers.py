"""Outlier ejection: replicas that answer, but fail much more often than the others, get no calls for a while.

After Envoy's outlier detection by success rate. The breaker sees failures in a row; this sees a replica that
fails every other call. Fleets here are small, so the comparison is with the rest of the fleet and not with a
standard deviation. Only calls for the same version are compared: a version that fails everywhere is no
replica's fault, and a replica that alone has it must not lose the calls for all its other versions, too.

Each version is judged by itself, and all of them together, since each may have too few calls to tell: what a
replica has answered is compared with what the others would have answered of the same calls, at their rate for
each version (epidemiology's indirect standardization).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

WINDOW_S = 10.0
# Fewer calls in a window say nothing.
LEAST_CALLS = 20
# A replica is an outlier if its success rate is below this multiple of the others' by more than chance
# explains: by that many standard errors, were its calls to succeed as often as theirs.
TOLERANCE = 0.85
_CHANCE = 3.0
# All versions together are judged again after one failure per this many versions, since that looks at each.
_VERSIONS_A_FAILURE = 8
FIRST_EJECTION_S = 5.0
MAX_EJECTION_S = 60.0
# A replica that was well for this long after an ejection starts over at the shortest one.
WELL_AFTER_S = 60.0


Version = tuple[str, int]
"""A model, and the number of one of its versions."""


class Rate(NamedTuple):
    """The share of calls that were answered, and out of how many."""

    share: float
    calls: int


class Tally(NamedTuple):
    """How many calls were answered, and how many were made."""

    answered: int = 0
    calls: int = 0


_NO_CALLS = Tally()


@dataclass(slots=True)
class Outcomes:
    """The calls of one replica in the current window and the one before; when it may be used again."""

    ejected_until: float = 0.0
    ejections: int = 0
    _window: int = 0
    _current: dict[Version, Tally] = field(default_factory=dict)
    _before: dict[Version, Tally] = field(default_factory=dict)
    _failed_since_due: int = 0

    def add(self, of: Version, *, failed: bool, now: float) -> None:
        """A call for a version ended at `now`."""
        self._turn(now)
        answered, calls = self._current.get(of, _NO_CALLS)
        self._current[of] = Tally(answered + (not failed), calls + 1)
        self._failed_since_due += failed

    def versions(self, now: float) -> set[Version]:
        """The versions for which there were calls."""
        self._turn(now)
        return self._current.keys() | self._before.keys()

    def tally(self, of: Version, now: float) -> Tally:
        """How a version's calls ended."""
        self._turn(now)
        current, before = self._current.get(of, _NO_CALLS), self._before.get(of, _NO_CALLS)
        return Tally(current.answered + before.answered, current.calls + before.calls)

    def success_rate(self, of: Version, now: float) -> Rate | None:
        """How often a version's calls were answered; None if there were too few to tell."""
        answered, calls = self.tally(of, now)
        return None if calls < LEAST_CALLS else Rate(answered / calls, calls)

    def is_due(self) -> bool:
        """Whether enough calls have failed since it last was due to judge all versions together."""
        versions = max(len(self._current), len(self._before))
        if self._failed_since_due * _VERSIONS_A_FAILURE < max(versions, 1):
            return False
        self._failed_since_due = 0
        return True

    def eject(self, now: float) -> None:
        """Eject the replica, for longer if the last time was not long ago, and judge it afresh afterwards."""
        self.ejections = self.ejections + 1 if now - self.ejected_until < WELL_AFTER_S else 1
        self.ejected_until = now + min(MAX_EJECTION_S, FIRST_EJECTION_S * self.ejections)
        self._current, self._before = {}, {}

    def _turn(self, now: float) -> None:
        window = int(now / WINDOW_S)
        if window == self._window:
            return
        self._before = self._current if window == self._window + 1 else {}
        self._current = {}
        self._window = window


def is_outlier(replica: Outcomes, others: Sequence[Outcomes], of: Version, now: float) -> bool:
    """Whether to eject `replica` for how it does with a version, or with all, compared with the others.

    At most half of a fleet is ever ejected: those that remain would drown.
    """
    in_use = [each for each in others if each.ejected_until <= now]
    if len(in_use) < len(others) - len(in_use) + 1:
        return False
    return _fails(replica, in_use, of, now) or (replica.is_due() and _fails_together(replica, in_use, now))


def _fails(replica: Outcomes, others: Sequence[Outcomes], of: Version, now: float) -> bool:
    """Whether it fails a version's calls much more often than the others do on average."""
    rate = replica.success_rate(of, now)
    shares = [found.share for each in others if (found := each.success_rate(of, now)) is not None]
    if rate is None or not shares:
        return False
    usual = sum(shares) / len(shares)
    by_chance = _CHANCE * math.sqrt(usual * (1.0 - usual) / rate.calls)
    return rate.share < TOLERANCE * usual - by_chance


def _fails_together(replica: Outcomes, others: Sequence[Outcomes], now: float) -> bool:
    """Whether it fails many more calls than the others would have, had they got its calls."""
    calls = answered = their_calls = 0
    expected = variance = 0.0
    for of in replica.versions(now):
        own, theirs = replica.tally(of, now), [each.tally(of, now) for each in others]
        made, well = sum(each.calls for each in theirs), sum(each.answered for each in theirs)
        if not made:
            continue
        calls, answered, their_calls = calls + own.calls, answered + own.answered, their_calls + made
        expected += own.calls * well / made
        # After a handful of calls that all went well, the next may still fail (Laplace's rule of succession).
        careful = (well + 1) / (made + 2)
        variance += careful * (1.0 - careful) * own.calls * (1.0 + own.calls / made)
    if min(calls, their_calls) < LEAST_CALLS:
        return False
    return answered < TOLERANCE * expected - _CHANCE * math.sqrt(variance)

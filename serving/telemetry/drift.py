"""Which classes a version predicts, and how far that is from what it was trained on. Pure.

The population stability index compares two distributions over the same groups: the sum over the groups of
(actual - expected) * ln(actual / expected). By the usual rule of thumb below 0.1 nothing has changed and
above 0.25 much has (Siddiqi, "Credit Risk Scorecards", 2006). Without any change its expectation over n
predictions in g groups is about (g - 1) / n (Yurdakul, "Statistical Properties of Population Stability
Index", 2018); so rare classes are one group, and nothing is said before there are enough predictions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

OTHER = "other"
# Series per version: the frequent classes by name, and one for the rest.
MOST_GROUPS = 20
# The index is over the last 1,000 to 2,000 predictions: with 20 groups chance alone contributes 0.02 at most.
HALF_WINDOW = 1000
# By then chance alone contributes 0.05 at most, half of what would be called a slight change: with up to 10
# groups after this many predictions, with more groups after this many for each.
LEAST_PREDICTIONS = 200
_LEAST_PREDICTIONS_A_GROUP = 20
# A class that was never in the training data must not make the index infinite.
_LEAST_SHARE = 1e-4


def group_classes(labels: Sequence[str], shares: Sequence[float] | None) -> tuple[str, ...]:
    """The group of each class: its label, or `other` for all but the most frequent where there are many.

    The same in every process that serves the version, so that their counts can be added up.

    Args:
        labels: the classes' labels, [K].
        shares: how frequent they were in training, [K], if that is known.
    """
    if len(labels) <= MOST_GROUPS:
        return tuple(labels)
    frequency = shares or [0.0] * len(labels)
    by_frequency = sorted(range(len(labels)), key=lambda index: (-frequency[index], index))
    named = set(by_frequency[: MOST_GROUPS - 1])
    return tuple(label if index in named else OTHER for index, label in enumerate(labels))


def stability_index(expected: Sequence[float], counts: Sequence[int]) -> float:
    """The population stability index of counts, [G], against expected shares, [G]."""
    total = sum(counts) + 0.5 * len(counts)  # half a prediction in each group: an empty one is no proof of 0
    index = 0.0
    for share, count in zip(expected, counts, strict=True):
        wanted, actual = max(share, _LEAST_SHARE), (count + 0.5) / total
        index += (actual - wanted) * math.log(actual / wanted)
    return index


class PredictedClasses:
    """What one version has predicted lately.

    Args:
        labels: the classes' labels, [K].
        shares: how frequent they were in training, [K]; None: unknown, and there is no index.
    """

    def __init__(self, labels: Sequence[str], shares: Sequence[float] | None) -> None:
        if shares is not None and len(shares) != len(labels):
            shares = None  # a card that does not fit its model says nothing
        self.labels = labels
        self.group_of = group_classes(labels, shares)
        self._named = set(self.group_of)
        names = tuple(dict.fromkeys(self.group_of))
        place = {name: index for index, name in enumerate(names)}
        self._place_of = [place[name] for name in self.group_of]
        self._expected: list[float] | None = None if shares is None else [0.0] * len(names)
        if self._expected is not None:
            for each, share in zip(self._place_of, shares or (), strict=True):
                self._expected[each] += share
        self._before = [0] * len(names)
        self._counts = [0] * len(names)

    def add(self, indices: Iterable[int]) -> None:
        """Count predictions, by the index of the predicted class."""
        for index in indices:
            self._counts[self._place_of[index]] += 1
        if sum(self._counts) >= HALF_WINDOW:
            self._before, self._counts = self._counts, [0] * len(self._counts)

    def group(self, label: str) -> str:
        """The group of a label."""
        return label if label in self._named else OTHER

    def index(self) -> float | None:
        """The stability index of the latest predictions; None while there are too few."""
        counts = [old + new for old, new in zip(self._before, self._counts, strict=True)]
        least = max(LEAST_PREDICTIONS, _LEAST_PREDICTIONS_A_GROUP * len(counts))
        if self._expected is None or sum(counts) < least:
            return None
        return stability_index(self._expected, counts)

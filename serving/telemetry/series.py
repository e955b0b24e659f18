"""Metrics that remember their series.

`labels()` of prometheus_client makes strings of the values and takes a lock; with nine series touched in each
request that was a twentieth of the event loop's time.
"""

from __future__ import annotations

from typing import Any, Self

from prometheus_client import Counter as PlainCounter
from prometheus_client import Histogram as PlainHistogram
from prometheus_client.metrics import MetricWrapperBase


class _Remembering(MetricWrapperBase):
    """Finds the series of label values that it has seen before in one lookup."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._remembered: dict[tuple[Any, ...], Self] = {}
        super().__init__(*args, **kwargs)

    def labels(self, *labelvalues: Any, **labelkwargs: Any) -> Self:
        """The series of these values, by position or by name."""
        if labelkwargs:
            return super().labels(*labelvalues, **labelkwargs)
        found = self._remembered.get(labelvalues)
        if found is None:
            found = self._remembered[labelvalues] = super().labels(*labelvalues)
        return found

    def remove_by_labels(self, labels: dict[str, str]) -> None:
        """End every series with these values, by label name."""
        self._remembered.clear()
        super().remove_by_labels(labels)


class Counter(_Remembering, PlainCounter):
    """A counter; its series end by `remove_by_labels` only."""


class Histogram(_Remembering, PlainHistogram):
    """A histogram; its series end by `remove_by_labels` only."""

"""The original's metrics, by its names, in Prometheus' text format.

The names hold colons (`:tensorflow:serving:request_count`), and counters have no `_total`, so that no
client library writes them as the original does; hence these few lines.
"""

from __future__ import annotations

import bisect
import math
import threading
from collections.abc import Sequence

# Microseconds: 10 times powers of 1.8, up to some twenty minutes.
LATENCY_LIMITS_US = [10 * 1.8**power for power in range(33)]
EXAMPLE_COUNT_LIMITS = [float(2**power) for power in range(15)]
QUEUING_LIMITS_US = [100 * 1.2**power for power in range(52)]
# Clients may ask for models by any name: this many names that no model has are counted separately.
MOST_STRANGERS = 100
LONGEST_STRANGER = 255  # characters, as a folder's name


def _label_text(names: Sequence[str], values: Sequence[str]) -> str:
    escaped = (value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for value in values)
    return ",".join(f'{name}="{value}"' for name, value in zip(names, escaped, strict=True))


class Counter:
    """A count for each combination of label values."""

    def __init__(self, name: str, labels: Sequence[str]) -> None:
        self._name, self._labels = name, labels
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, ...], int] = {}

    def add(self, *values: str, by: int = 1) -> None:
        """Add to the count of these label values."""
        with self._lock:
            self._counts[values] = self._counts.get(values, 0) + by

    def lines(self) -> list[str]:
        """The exposition, header first; empty before the first count."""
        with self._lock:
            counts = sorted(self._counts.items())
        if not counts:
            return []
        header = f"# TYPE {self._name} counter"
        return [header, *(f"{self._name}{{{_label_text(self._labels, v)}}} {n}" for v, n in counts)]


class Histogram:
    """A distribution for each combination of label values.

    Args:
        limits: the upper bounds of the buckets, the infinite one apart.
    """

    def __init__(self, name: str, labels: Sequence[str], limits: Sequence[float]) -> None:
        self._name, self._labels, self._limits = name, labels, limits
        self._lock = threading.Lock()
        self._buckets: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}

    def observe(self, value: float, *labels: str) -> None:
        """Count `value` under these label values."""
        index = bisect.bisect_left(self._limits, value)
        with self._lock:
            buckets = self._buckets.get(labels)
            if buckets is None:
                buckets = self._buckets[labels] = [0] * (len(self._limits) + 1)
                self._sums[labels] = 0.0
            buckets[index] += 1
            self._sums[labels] += value

    def lines(self) -> list[str]:
        """The exposition, header first; empty before the first observation."""
        with self._lock:
            found = sorted(
                (labels, list(buckets), self._sums[labels]) for labels, buckets in self._buckets.items()
            )
        lines = [f"# TYPE {self._name} histogram"] if found else []
        for values, buckets, total in found:
            labels = _label_text(self._labels, values)
            count = 0
            for limit, number in zip([*self._limits, math.inf], buckets, strict=True):
                count += number
                bound = "+Inf" if math.isinf(limit) else f"{limit:g}"
                lines.append(f'{self._name}_bucket{{{labels},le="{bound}"}} {count}')
            lines += [f"{self._name}_sum{{{labels}}} {total:g}", f"{self._name}_count{{{labels}}} {count}"]
        return lines


class Strangers:
    """The names under which requests for unknown models are counted: the first few under their own."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def shown(self, name: str) -> str:
        """The name itself, or the empty one, which all later names share."""
        if name not in self._names:
            if len(self._names) >= MOST_STRANGERS or len(name) > LONGEST_STRANGER:
                return ""
            self._names.add(name)
        return name


class Metrics:
    """All that one server counts."""

    def __init__(self) -> None:
        self.strangers = Strangers()
        serving, loading = ":tensorflow:serving", ":tensorflow:cc:saved_model"
        self.request_count = Counter(f"{serving}:request_count", ["model_name", "status"])
        self.request_latency = Histogram(
            f"{serving}:request_latency", ["model_name", "API", "entrypoint"], LATENCY_LIMITS_US
        )
        self.runtime_latency = Histogram(
            f"{serving}:runtime_latency", ["model_name", "API", "runtime"], LATENCY_LIMITS_US
        )
        self.example_counts = Histogram(f"{serving}:request_example_counts", ["model"], EXAMPLE_COUNT_LIMITS)
        self.example_count_total = Counter(f"{serving}:request_example_count_total", ["model"])
        self.warmup_latency = Histogram(
            f"{serving}:model_warmup_latency", ["model_path", "status"], LATENCY_LIMITS_US
        )
        self.queuing_latency = Histogram(
            f"{serving}:batching_session:queuing_latency", ["thread_pool_name"], QUEUING_LIMITS_US
        )
        self.load_attempt_count = Counter(f"{loading}:load_attempt_count", ["model_path", "status"])
        self.load_latency = Counter(f"{loading}:load_latency", ["model_path"])

    def page(self) -> str:
        """The whole exposition."""
        families = [value for value in vars(self).values() if isinstance(value, Counter | Histogram)]
        return "\n".join(line for family in families for line in family.lines()) + "\n"

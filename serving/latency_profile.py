"""What a call costs as a function of its batch size, learned from the calls themselves.

Sizes share a bucket up to the next power of two. Each bucket keeps a moving mean and a moving mean deviation,
as TCP does for round-trip times (Jacobson and Karels, "Congestion Avoidance and Control", 1988; RFC 6298).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

_MEAN_WEIGHT = 1 / 8
_DEVIATION_WEIGHT = 1 / 4
# With fewer calls in a bucket nothing is concluded: the first of a size may compile kernels.
_LEAST_CALLS = 5
# Without new calls an estimate halves in this time: refusing requests by it prevents the calls that would
# correct it.
HALF_LIFE_S = 2.0
# An answer that takes longer than this multiple of the plausible worst case is not going to come.
_PATIENCE_FACTOR = 4.0
LEAST_PATIENCE_S = 1.0


@dataclass(slots=True)
class _Bucket:
    calls: int = 0
    mean_s: float = 0.0
    deviation_s: float = 0.0

    def learn(self, latency_s: float) -> None:
        self.calls += 1
        if self.calls == 1:
            self.mean_s, self.deviation_s = latency_s, latency_s / 2
            return
        self.deviation_s += _DEVIATION_WEIGHT * (abs(latency_s - self.mean_s) - self.deviation_s)
        self.mean_s += _MEAN_WEIGHT * (latency_s - self.mean_s)


@dataclass(slots=True)
class LatencyProfile:
    """The latencies of one version's calls, from start to answer. Times are given by the caller."""

    _buckets: dict[int, _Bucket] = field(default_factory=dict)
    _learned_at: float = 0.0

    def learn(self, size: int, latency_s: float, now: float) -> None:
        """A call with `size` images was answered at `now`."""
        self._buckets.setdefault(_bucket(size), _Bucket()).learn(latency_s)
        self._learned_at = now

    def least_s(self, size: int, now: float) -> float:
        """What a call with `size` images takes even if it goes well; 0 while too little is known."""
        least = (each.mean_s - each.deviation_s for each in self._known(size))
        return self._fresh(now) * max(0.0, max(least, default=0.0))

    def usual_s(self, size: int, now: float) -> float:
        """What a call with `size` images takes on average: over many calls, deviations even out."""
        return self._fresh(now) * max((each.mean_s for each in self._known(size)), default=0.0)

    def _known(self, size: int) -> Iterator[_Bucket]:
        """The buckets with calls of `size` images or fewer."""
        for bucket, each in self._buckets.items():
            if bucket <= size and each.calls >= _LEAST_CALLS:
                yield each

    def _fresh(self, now: float) -> float:
        return float(0.5 ** ((now - self._learned_at) / HALF_LIFE_S))

    def patience_s(self, size: int) -> float | None:
        """After how long a call with `size` images is given up as lost; None while too little is known."""
        found = self._buckets.get(_bucket(size))
        if found is None or found.calls < _LEAST_CALLS:
            return None
        slowest = max(each.mean_s + 4 * each.deviation_s for each in self._buckets.values())
        return max(LEAST_PATIENCE_S, _PATIENCE_FACTOR * slowest)


def _bucket(size: int) -> int:
    """The smallest power of two that is not below `size`."""
    return 1 << (size - 1).bit_length()


def least_wait_s(profile: LatencyProfile, *, queued: int, slots: int, max_batch: int, now: float) -> float:
    """How long an image that comes now takes to be answered, if its own call goes well.

    Args:
        profile: the version's latencies.
        queued: images that wait already.
        slots: calls that the replicas take at once.
        max_batch: images in a call.
        now: the time.
    """
    full_batches_ahead = queued // max_batch
    own_s = profile.least_s(1, now)
    if not full_batches_ahead:
        return own_s
    return full_batches_ahead / max(slots, 1) * profile.usual_s(max_batch, now) + own_s

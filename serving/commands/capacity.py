"""How many replicas and gateways a load takes, and how long its answers take, from measured batch latencies.

The model, for one replica that computes one batch at a time, with work-conserving batches:

- A batch of b images takes L(b) seconds: measured at some sizes, between them on straight lines.
- Full batches of B give at most mu = B / L(B) images/s. A replica is planned to run at u x mu, u below 1.
- At lambda images/s images gather while a batch is computed, so the batch is as large as what arrives during
  its own computation: b = lambda x L(b), at least 1 and at most B.
- Arrivals vary (Poisson): 99 times in 100 at most b99 = b + 2.33 x sqrt(b) images gather, at most B.
- An image waits for a slot (up to one L), behind the calls that are in flight before it (k - 1 of them), and
  is computed (one L): at most (k + 1) x L, and 99 times in 100 below (k + 0.99) x L(b99).
- If more gather than a batch takes, some wait for another one. The tail of that wait falls off as
  exp(-2 (1 - rho) mu t) with rho = lambda / mu (Kingman's heavy-traffic limit for Poisson arrivals and equal
  service times: "The single server queue in heavy traffic", 1961), so 99 times in 100 it is below
  ln(100) / (2 (1 - rho) mu).

The p99 given is the sum of the last two: a bound, not an estimate. A light load mostly finds an idle replica.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serving.errors import InvalidInput

_SECONDS_PER_HOUR = 3600.0
_Z99 = 2.326  # the standard normal distribution's 99th percentile
_GIGABIT = 1e9 / 8


@dataclass(frozen=True, slots=True)
class Measured:
    """Latency in seconds of a batch, by its size: what one replica was seen to do."""

    seconds: Mapping[int, float]

    def __post_init__(self) -> None:
        if not self.seconds:
            raise InvalidInput("no batch latency is given; pass at least one, such as 1:2.1ms")
        for batch, seconds in self.seconds.items():
            if batch < 1 or not 0 < seconds < math.inf:
                raise InvalidInput(
                    f"a batch of {batch} in {seconds:g} s makes no sense; both must be above 0"
                )

    def latency_s(self, batch: float) -> float:
        """L(batch): on the line between the nearest measured sizes, level below the smallest.

        Beyond the largest size it grows in proportion, as on saturated hardware.
        """
        sizes = sorted(self.seconds)
        if batch <= sizes[0]:
            return self.seconds[sizes[0]]
        if batch >= sizes[-1]:
            return self.seconds[sizes[-1]] * batch / sizes[-1]
        at = bisect_left(sizes, batch)
        low, high = sizes[at - 1], sizes[at]
        share = (batch - low) / (high - low)
        return self.seconds[low] + share * (self.seconds[high] - self.seconds[low])


@dataclass(frozen=True, slots=True)
class Need:
    """What is needed.

    Attributes:
        images_per_s: the load at its peak.
        p99_s: the longest that 99 of 100 images may take, from gateway to answer; None: no bound.
        utilisation: the share of a replica's best throughput to plan for.
        spare: replicas beyond what the load takes: failures, and rollouts that swap one at a time.
        calls_per_replica: the gateway's setting of that name (k above).
        overhead_s: what the gateway adds: reading, decoding, a network hop.
        replica_cost: an hour of one replica, in any currency.
        gateway_images_per_s: what one gateway does.
        gateway_cost: an hour of one gateway.
        image_bytes: the mean size of an encoded image.
        spare_gateways: as `spare`.
    """

    images_per_s: float
    p99_s: float | None = None
    utilisation: float = 0.7
    spare: int = 1
    calls_per_replica: int = 2
    overhead_s: float = 0.005
    replica_cost: float = 0.0
    gateway_images_per_s: float = 600.0
    gateway_cost: float = 0.0
    image_bytes: float = 55_000.0
    spare_gateways: int = 1

    def __post_init__(self) -> None:
        for name in ("images_per_s", "gateway_images_per_s", "image_bytes", "calls_per_replica"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidInput(f"{name} is {getattr(self, name):g}; it must be a number above 0")
        for name in ("overhead_s", "replica_cost", "gateway_cost"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidInput(f"{name} is {getattr(self, name):g}; it must be a number, 0 or above")
        if self.p99_s is not None and not self.p99_s > 0:
            raise InvalidInput(f"p99_s is {self.p99_s:g}; it must be above 0")
        if not 0 < self.utilisation < 1:
            raise InvalidInput(f"utilisation is {self.utilisation:g}; it lies between 0 and 1")


@dataclass(frozen=True, slots=True)
class Option:
    """One way to carry the load: the largest batch, and what follows from it.

    Attributes:
        max_batch: the largest batch, B.
        full_rate: images/s of one replica with full batches, mu.
        replicas: how many, spare ones included.
        batch: how large batches are at the load, b, with the spare replicas gone.
        p99_s: the bound on latency, likewise.
        cost_per_million: of replicas and gateways, for a million images at the peak rate.
    """

    max_batch: int
    full_rate: float
    replicas: int
    batch: float
    p99_s: float
    cost_per_million: float


def _whole(count: float) -> int:
    """Rounded up, but not for the last bit of a float; the smallest load takes one, too."""
    return max(1, math.ceil(count - 1e-9))


def gateways(need: Need) -> int:
    """How many gateways the load takes, spare ones included."""
    return _whole(need.images_per_s / (need.gateway_images_per_s * need.utilisation)) + need.spare_gateways


def gathered(measured: Measured, rate: float, max_batch: int) -> float:
    """b: the size of batches at `rate` images/s on one replica, where b = rate x L(b)."""
    low, high = 1.0, float(max_batch)
    if rate * measured.latency_s(high) >= high:
        return high
    for _ in range(60):  # L is continuous and, beyond the solution, below b / rate: halving finds it
        middle = (low + high) / 2
        if rate * measured.latency_s(middle) > middle:
            low = middle
        else:
            high = middle
    return high


def p99_s(measured: Measured, need: Need, rate: float, max_batch: int) -> float:
    """The bound on what 99 of 100 images take at `rate` images/s on one replica; infinite beyond its best."""
    full_rate = max_batch / measured.latency_s(max_batch)
    if rate >= full_rate:
        return math.inf
    computing_s = (need.calls_per_replica + 0.99) * measured.latency_s(largest(measured, rate, max_batch))
    return computing_s + queueing_s(rate, full_rate) + need.overhead_s


def largest(measured: Measured, rate: float, max_batch: int) -> float:
    """b99: what 99 batches of 100 hold at most."""
    batch = gathered(measured, rate, max_batch)
    return min(max_batch, batch + _Z99 * math.sqrt(batch))


def queueing_s(rate: float, full_rate: float) -> float:
    """How long 99 of 100 images wait at most because more have gathered than one batch takes."""
    return math.log(100) / (2 * (1 - rate / full_rate) * full_rate)


def options(measured: Measured, need: Need) -> list[Option]:
    """An option for each measured size as the largest batch, smallest first."""
    return [_option(measured, need, size) for size in sorted(measured.seconds)]


def _option(measured: Measured, need: Need, max_batch: int) -> Option:
    full_rate = max_batch / measured.latency_s(max_batch)
    working = _whole(need.images_per_s / (full_rate * need.utilisation))
    if need.p99_s is not None:
        working = _enough(measured, need, max_batch, working)
    replicas = working + need.spare
    hourly = replicas * need.replica_cost + gateways(need) * need.gateway_cost
    return Option(
        max_batch=max_batch,
        full_rate=full_rate,
        replicas=replicas,
        batch=gathered(measured, need.images_per_s / working, max_batch),
        p99_s=p99_s(measured, need, need.images_per_s / working, max_batch),
        cost_per_million=hourly / (need.images_per_s * _SECONDS_PER_HOUR) * 1e6,
    )


def _enough(measured: Measured, need: Need, max_batch: int, working: int) -> int:
    """The fewest replicas, at least `working`, that keep the bound on latency, if any number does."""
    assert need.p99_s is not None
    limit = math.ceil(need.images_per_s * measured.latency_s(1)) * 100 + working
    if p99_s(measured, need, need.images_per_s / limit, max_batch) > need.p99_s:
        return working  # more replicas do not help: a batch of one already takes too long
    low, high = working, limit
    while low < high:
        middle = (low + high) // 2
        if p99_s(measured, need, need.images_per_s / middle, max_batch) > need.p99_s:
            low = middle + 1
        else:
            high = middle
    return low


def best(found: Sequence[Option], need: Need) -> Option | None:
    """Of the options that keep the bound on latency, the one with the fewest replicas, then the fastest."""
    kept = [option for option in found if need.p99_s is None or option.p99_s <= need.p99_s]
    return min(kept, key=lambda option: (option.replicas, option.p99_s), default=None)


def arithmetic(measured: Measured, need: Need, option: Option) -> dict[str, str]:
    """The arithmetic behind an option, for a person to check with a pocket calculator."""
    working = option.replicas - need.spare
    rate = need.images_per_s / working
    batch, most = gathered(measured, rate, option.max_batch), largest(measured, rate, option.max_batch)
    full_ms, most_ms = (measured.latency_s(size) * 1e3 for size in (option.max_batch, most))
    by_load = need.images_per_s / (option.full_rate * need.utilisation)
    for_latency = f"; for the latency {working}" if working > _whole(by_load) else ""
    calls, overhead_ms = need.calls_per_replica + 0.99, need.overhead_s * 1e3
    queue_ms = queueing_s(rate, option.full_rate) * 1e3
    load, mu, share = f"{need.images_per_s:,.0f}", f"{option.full_rate:,.0f}", f"{need.utilisation:g}"
    return {
        "full batches": f"{option.max_batch} images / {full_ms:.2f} ms = {mu} images/s a replica",
        "replicas": f"{load} / ({mu} x {share}) = {by_load:,.2f} -> {_whole(by_load)}{for_latency}"
        f"; with {need.spare} spare {option.replicas}",
        "batches": f"b = {rate:,.0f} images/s x L(b) at b = {batch:.1f}; 99 in 100 up to {most:.1f}",
        "computing": f"({need.calls_per_replica} + 0.99) x L({most:.1f}) = {calls:g} x {most_ms:.2f} ms"
        f" = {calls * most_ms:.1f} ms",
        "queueing": f"ln(100) / (2 x (1 - {rate / option.full_rate:.2f}) x {mu}/s) = {queue_ms:.1f} ms",
        "p99 at most": f"{calls * most_ms:.1f} + {queue_ms:.1f} + {overhead_ms:g} ms of the gateway's"
        f" = {option.p99_s * 1e3:.1f} ms",
        **_around(need, option),
    }


def _around(need: Need, option: Option) -> dict[str, str]:
    """The arithmetic of gateways, network and cost."""
    count, load = gateways(need), f"{need.images_per_s:,.0f}"
    traffic = need.images_per_s * need.image_bytes / _GIGABIT
    lines = {
        "gateways": f"{load} / ({need.gateway_images_per_s:,.0f} x {need.utilisation:g}) -> "
        f"{count - need.spare_gateways}; with {need.spare_gateways} spare {count}",
        "network": f"{load} x {need.image_bytes / 1e3:,.0f} kB = {traffic:,.2f} Gbit/s in, "
        f"{traffic / count:,.2f} a gateway",
    }
    if need.replica_cost or need.gateway_cost:
        hourly = option.replicas * need.replica_cost + count * need.gateway_cost
        millions = need.images_per_s * _SECONDS_PER_HOUR / 1e6
        lines["cost"] = (
            f"{option.replicas} x {need.replica_cost:g} + {count} x {need.gateway_cost:g} = {hourly:,.2f}"
            f" an hour / {millions:,.2f} million images = {option.cost_per_million:,.3f} a million"
        )
    return lines

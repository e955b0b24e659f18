"""The traffic that the simulator invents: requests, bad events, copies, incidents."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from serving.errors import InvalidInput
from serving.rollout.evidence import FloatArray, IntArray
from serving.rollout.ledger import Arms, Interval, Pairs


@dataclass(frozen=True, slots=True)
class Traffic:
    """One service's requests and how each version fares with them.

    Attributes:
        rps: Requests per second, Poisson.
        stable_error: The share of the stable version's requests that fail.
        candidate_error: The candidate's.
        stable_slow: The share slower than the limit; the default limit is stable's 99th percentile.
        candidate_slow: The candidate's.
        agreement: The share of images on which both name the same class.
        incidents_per_hour: Shared incidents (a network, a node), Poisson.
        incident_s: How long one lasts.
        incident_error: The share of requests that an incident makes fail, whichever version they go to.
        classes: How many classes there are, equally frequent.
    """

    rps: float = 50.0
    stable_error: float = 0.005
    candidate_error: float = 0.005
    stable_slow: float = 0.01
    candidate_slow: float = 0.01
    agreement: float = 0.97
    incidents_per_hour: float = 0.0
    incident_s: float = 60.0
    incident_error: float = 0.2
    classes: int = 10

    def __post_init__(self) -> None:
        if not 0.0 < self.rps <= 1e6:
            raise InvalidInput(f"rps is {self.rps:g}; it must be above 0 and at most 1000000")
        for name in ("stable_error", "candidate_error", "stable_slow", "candidate_slow", "agreement"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InvalidInput(
                    f"{name} is {getattr(self, name):g}; it is a share and lies between 0 and 1"
                )
        incidents = all(0.0 <= each < math.inf for each in (self.incidents_per_hour, self.incident_s))
        if not incidents or not 0.0 <= self.incident_error <= 1.0:
            raise InvalidInput(
                "incidents: a rate and a duration of at least 0, an error share between 0 and 1"
            )


class Source:
    """Draws interval after interval for a number of runs, with incidents that go on from one to the next."""

    def __init__(self, traffic: Traffic, runs: int, tick_s: float, seed: int) -> None:
        self._traffic = traffic
        self._tick_s = tick_s
        self._random = np.random.default_rng(seed)
        self._incident_left = np.zeros(runs)

    def keep(self, rows: IntArray) -> None:
        """Goes on with these runs only."""
        self._incident_left = self._incident_left[rows]

    def interval(self, weight: FloatArray, shadow: FloatArray) -> Interval:
        """What one interval brings under these weights and shares of copies, [runs] each."""
        traffic, random = self._traffic, self._random
        shared = self._incident_errors(len(weight))
        stable_error = 1.0 - (1.0 - traffic.stable_error) * (1.0 - shared)
        candidate_error = 1.0 - (1.0 - traffic.candidate_error) * (1.0 - shared)
        n = random.poisson(traffic.rps * self._tick_s, len(weight))
        candidate_n = random.binomial(n, weight)
        stable_n = n - candidate_n
        errors = Arms(
            candidate_n,
            random.binomial(candidate_n, candidate_error),
            stable_n,
            random.binomial(stable_n, stable_error),
        )
        latency = Arms(
            candidate_n,
            random.binomial(candidate_n, traffic.candidate_slow),
            stable_n,
            random.binomial(stable_n, traffic.stable_slow),
        )
        unkeyed = np.stack([candidate_n, stable_n], axis=-1)
        copies = random.binomial(stable_n, shadow)
        arms = {"errors": errors, "latency": latency}
        if not copies.any():
            return Interval(arms=arms, unkeyed=unkeyed, weight=weight)
        pairs = self._pairs(copies, candidate_error, stable_error)
        return Interval(arms, {"errors": pairs}, self._agreement(copies), unkeyed, weight)

    def _incident_errors(self, runs: int) -> FloatArray:
        traffic = self._traffic
        if not traffic.incidents_per_hour:
            return np.zeros(runs)
        begins = self._random.random(runs) < traffic.incidents_per_hour * self._tick_s / 3600.0
        self._incident_left = np.where(begins, traffic.incident_s, self._incident_left - self._tick_s)
        return np.where(self._incident_left > 0.0, traffic.incident_error, 0.0)

    def _pairs(self, copies: IntArray, candidate_error: FloatArray, stable_error: FloatArray) -> Pairs:
        candidate = self._random.binomial(copies, candidate_error)
        both = self._random.binomial(candidate, stable_error)
        stable_only = self._random.binomial(copies - candidate, stable_error)
        return Pairs(copies, candidate - both, stable_only)

    def _agreement(self, copies: IntArray) -> tuple[FloatArray, FloatArray]:
        classes = self._traffic.classes
        compared = self._random.multinomial(copies, np.full(classes, 1.0 / classes))
        agreed = self._random.binomial(compared, self._traffic.agreement)
        return compared.astype(np.float64), agreed.astype(np.float64)

"""Which version answers a request: pure, sticky, and without memory.

A key (the caller's, or the request's id) is hashed to a point in [0, 1). The candidate owns the points
below its weight, so a growing weight only ever adds keys to it, and every gateway that knows the same split
routes a key the same way without talking to the others. Whether a request is also copied to the candidate
(shadow) is decided by a second, independent hash: which requests are compared says nothing about who
receives them.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

Arm = Literal["stable", "candidate"]

_TWO_TO_64 = 2.0**64


@dataclass(frozen=True, slots=True)
class Split:
    """How one model's traffic is divided while a version is let in.

    Args:
        stable: The version that serves.
        candidate: The version that is being let in, or None when there is no rollout.
        weight: The candidate's share of the keys, 0 to 1.
        shadow: The share of the stable version's requests that are copied to the candidate, 0 to 1.
        salt: Mixed into the hash (a rollout's id), so that the same callers are not first every time.

    Raises:
        ValueError: A share is outside 0 to 1, or is above 0 without a candidate.
    """

    stable: int
    candidate: int | None = None
    weight: float = 0.0
    shadow: float = 0.0
    salt: str = ""

    def __post_init__(self) -> None:
        for name, share in (("weight", self.weight), ("shadow", self.shadow)):
            if not 0.0 <= share <= 1.0:
                raise ValueError(f"{name} is {share}; it is a share of the traffic and lies between 0 and 1")
            if share > 0.0 and self.candidate is None:
                raise ValueError(f"{name} is {share}, but there is no candidate to send it to")

    @property
    def versions(self) -> set[int]:
        """The versions that it divides requests between."""
        return {self.stable} if self.candidate is None else {self.stable, self.candidate}


@dataclass(frozen=True, slots=True)
class Route:
    """Where one request goes.

    Attributes:
        version: The version that answers.
        arm: Which of the two that is.
        shadow: The version to send a copy to, or None.
    """

    version: int
    arm: Arm
    shadow: int | None


def unit_hash(salt: str, key: str, purpose: str) -> float:
    """Hashes a key to a point in [0, 1), the same in every process and on every machine.

    The salt's length goes in front, so that no salt and key run together into those of another pair.
    BLAKE2b's `person` keeps the points of two purposes independent.
    """
    message = f"{len(salt)}:{salt}{key}".encode("utf-8", "surrogatepass")
    digest = blake2b(message, digest_size=8, person=purpose.encode())
    # 53 bits: what a float holds exactly, so that the result never rounds up to 1.
    return (int.from_bytes(digest.digest(), "big") >> 11) * (2048 / _TWO_TO_64)


def choose(split: Split, key: str) -> Route:
    """Chooses the version that answers the request with this key, and the one that gets a copy.

    The same split and key give the same route; with a larger `weight` no key leaves the candidate. Only
    requests that the stable version answers are copied: the candidate's own need no comparison with itself.
    """
    candidate = split.candidate
    if candidate is None:
        return Route(split.stable, "stable", None)
    if unit_hash(split.salt, key, "arm") < split.weight:
        return Route(candidate, "candidate", None)
    copied = split.shadow > 0.0 and unit_hash(split.salt, key, "shadow") < split.shadow
    return Route(split.stable, "stable", candidate if copied else None)

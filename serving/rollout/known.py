"""What the gateway that decides knows of rollouts beside what is stored, as long as it decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from serving.rollout.counts import Counts
from serving.rollout.machine import Phase
from serving.rollout.record import Rollout


@dataclass(frozen=True, slots=True)
class Baseline:
    """The counts up to which a rollout's evidence goes, as this gateway saved it in that revision."""

    revision: int
    counts: Mapping[str, Counts]


@dataclass(slots=True)
class Known:
    """What is known of one rollout.

    Attributes:
        id: Which one.
        before: Up to which counts its evidence goes; None: that is not known, or it is over.
        phase: The phase that it was in when last seen; None before.
        entered_at: Since when, on the monotonic clock.
        seen_at: Unix time of this gateway's last look.
        looked_at: The same on the monotonic clock.
        told: How many of its moves were told of.
    """

    id: str
    before: Baseline | None = None
    phase: Phase | None = None
    entered_at: float = 0.0
    seen_at: float = 0.0
    looked_at: float = 0.0
    told: int = 0


class KnownRollouts:
    """What is known of the newest rollout of each model; what was known of earlier ones is forgotten."""

    def __init__(self) -> None:
        self._of: dict[str, Known] = {}

    def of(self, rollout: Rollout) -> Known:
        """What is known of a rollout, for who learns more to change."""
        known = self._of.get(rollout.model)
        if known is None or known.id != rollout.id:
            known = self._of[rollout.model] = Known(rollout.id)
        return known

    def clear(self) -> None:
        """Forgets everything."""
        self._of.clear()

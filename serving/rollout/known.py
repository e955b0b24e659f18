"""What the leader knows of rollouts beyond what is stored, for as long as it leads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from serving.rollout.counts import Counts
from serving.rollout.machine import Phase
from serving.rollout.record import Rollout


@dataclass(frozen=True, slots=True)
class Baseline:
    """The counts that a rollout's evidence includes, as this gateway saved it at `revision`."""

    revision: int
    counts: Mapping[str, Counts]


@dataclass(slots=True)
class Known:
    """What is known of one rollout.

    Attributes:
        id: The rollout's id.
        before: The counts that its evidence includes; None if they are unknown, or the rollout has ended.
        phase: Its phase when last seen; None before that.
        entered_at: When that phase was first seen, on the monotonic clock.
        seen_at: Unix time of this gateway's last look.
        looked_at: The same on the monotonic clock.
        told: How many of its moves have been announced.
    """

    id: str
    before: Baseline | None = None
    phase: Phase | None = None
    entered_at: float = 0.0
    seen_at: float = 0.0
    looked_at: float = 0.0
    told: int = 0


class KnownRollouts:
    """What is known of each model's newest rollout; earlier ones are forgotten."""

    def __init__(self) -> None:
        self._of: dict[str, Known] = {}

    def of(self, rollout: Rollout) -> Known:
        """What is known of a rollout; callers update it in place."""
        known = self._of.get(rollout.model)
        if known is None or known.id != rollout.id:
            known = self._of[rollout.model] = Known(rollout.id)
        return known

    def clear(self) -> None:
        """Forgets everything."""
        self._of.clear()

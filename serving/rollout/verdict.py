"""What may be said of a candidate, as values: an outcome and the reasons for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Outcome(StrEnum):
    """What the evidence, or a replica's report, says at the moment.

    `inconclusive` is not `fail`: nothing can be said (no counts, a broken split). `hold` means that the
    present weight is the right one for now; `wait` that nothing speaks against going on once the plan's
    minimum times have passed; `passed` that what this phase requires has been shown.
    """

    PASSED = "passed"
    WAIT = "wait"
    HOLD = "hold"
    INCONCLUSIVE = "inconclusive"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why: a stable code such as `errors.worse`, a sentence, and the numbers it rests on."""

    code: str
    text: str
    values: dict[str, float] = field(default_factory=dict)


def percent(share: float) -> str:
    """A share for a sentence, such as 25% or 0.1%."""
    return f"{100.0 * share:.3g}%"


@dataclass(frozen=True, slots=True)
class Verdict:
    """An outcome with its reasons, the deciding one first."""

    outcome: Outcome
    reasons: tuple[Reason, ...] = ()

    @property
    def reason(self) -> Reason:
        """The deciding reason."""
        return self.reasons[0] if self.reasons else Reason(self.outcome.value, "nothing to report")

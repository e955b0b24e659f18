"""Reasons not to let a candidate grow, however good the evidence for it. Pure."""

from __future__ import annotations

from serving.rollout.plan import Plan
from serving.rollout.quiet import is_quiet
from serving.rollout.record import Rollout
from serving.rollout.verdict import Reason


def unsure(plan: Plan, blind: str | None) -> Reason | None:
    """Why evidence in favour of the candidate cannot be trusted; None if it can.

    Args:
        plan: The rollout's plan.
        blind: Why the counts are not available; None if they are.
    """
    if plan.unknown:
        text = (
            f"this release of Sluice does not know {', '.join(plan.unknown)} in the plan, and nothing grows "
            "meanwhile: promote or abort by hand, or let a release that knows it decide"
        )
        return Reason("plan.unknown", text)
    if blind is not None:
        return Reason("counts.missing", f"the counts are not available: {blind}")
    return None


def held_back(rollout: Rollout, at: float) -> Reason | None:
    """Why nothing may grow at Unix time `at`, although the evidence would allow it; None if it may."""
    if is_quiet(rollout.plan, at):
        return Reason("quiet.hours", "nothing grows in the quiet hours")
    if rollout.plan.criteria.latency is not None and rollout.latency_limit_s is None:
        return Reason("latency.no-baseline", "stable has answered too few requests to say what is slow")
    return None

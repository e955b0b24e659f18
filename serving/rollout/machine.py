"""The states of a rollout and the pure functions that move it.

    pending → loading → preflight → shadow → canary(step) → promoting → promoted
    from anywhere before promoted:  → rolling_back → rolled_back
    paused: by hand, or by an inconclusive verdict; a paused rollout still rolls back

`now` is the rollout's own clock: seconds during which somebody watched. The controller advances it by the
time between two looks, but never by more than a few intervals, so that neither a clock that jumps nor a
controller that was away makes a rollout older than the time that it was watched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from serving.errors import FailedPrecondition
from serving.rollout.plan import Plan
from serving.rollout.verdict import Outcome, Reason, Verdict


class Phase(StrEnum):
    """Where a rollout is."""

    PENDING = "pending"
    LOADING = "loading"
    PREFLIGHT = "preflight"
    SHADOW = "shadow"
    CANARY = "canary"
    PAUSED = "paused"
    PROMOTING = "promoting"
    PROMOTED = "promoted"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"


FINISHED = frozenset({Phase.PROMOTED, Phase.ROLLED_BACK})
_JUDGED = frozenset({Phase.SHADOW, Phase.CANARY})

Command = Literal["pause", "resume", "promote", "abort"]


_STARTED = Reason("started", "the rollout was requested")


@dataclass(frozen=True, slots=True)
class State:
    """Where a rollout is, since when, and why.

    Attributes:
        phase: The phase.
        step: Which of the plan's canary steps; 0 before the canary.
        entered_at: On the rollout's clock, when the phase or step began.
        canary_at: When the canary began, or was resumed, on the same clock; None before.
        blind_since: Since when nothing could be said, or None.
        quiet_s: How long it has been quiet hours since its time limit began: the limit is that much later.
        resume_to: What a paused rollout goes back to, or None.
        reason: Why it moved here.
    """

    phase: Phase = Phase.PENDING
    step: int = 0
    entered_at: float = 0.0
    canary_at: float | None = None
    blind_since: float | None = None
    quiet_s: float = 0.0
    resume_to: Phase | None = None
    reason: Reason = _STARTED

    @property
    def under_way(self) -> Phase:
        """The phase, or the one that a pause interrupted."""
        if self.phase is Phase.PAUSED and self.resume_to is not None:
            return self.resume_to
        return self.phase


def moved(before: State, after: State) -> bool:
    """Whether the rollout has moved to another phase or step."""
    return (before.phase, before.step) != (after.phase, after.step)


def weight_of(plan: Plan, state: State) -> float:
    """The candidate's share of the traffic in this state."""
    if state.under_way is Phase.CANARY:
        return plan.canary[state.step].weight
    return 1.0 if state.under_way in (Phase.PROMOTING, Phase.PROMOTED) else 0.0


def shadow_of(plan: Plan, state: State) -> float:
    """The share of requests that are copied to the candidate in this state."""
    return plan.shadow.share if state.phase is Phase.SHADOW else 0.0


def spent_quietly(state: State, passed_s: float) -> State:
    """The state after this much of quiet hours, which no time limit counts: nothing could grow."""
    return replace(state, quiet_s=state.quiet_s + passed_s)


def judged_phase(state: State) -> Phase | None:
    """The phase whose evidence counts now (a paused rollout is judged as before), or None."""
    return state.under_way if state.under_way in _JUDGED else None


def advance(plan: Plan, state: State, verdict: Verdict, now: float, step_requests: float = 0.0) -> State:
    """The next state: at most one move on, or the same state.

    Args:
        plan: The rollout's plan.
        state: Where it is.
        verdict: What the replicas say (pending, loading, preflight, promoting, rolling_back) or the evidence
            says (shadow, canary, paused).
        now: On the rollout's clock, in seconds.
        step_requests: How many requests the candidate answered in this step.
    """
    if state.phase in FINISHED:
        return state
    outcome = verdict.outcome
    if state.phase is Phase.ROLLING_BACK:
        # Nothing can fail here for good: it goes on until every replica is back.
        return _to(state, Phase.ROLLED_BACK, now, state.reason) if outcome is Outcome.PASSED else state
    if outcome is Outcome.FAIL:
        return _to(state, Phase.ROLLING_BACK, now, verdict.reason)
    if outcome is Outcome.INCONCLUSIVE:
        return _blind(plan, state, verdict, now)
    if state.blind_since is not None:
        state = replace(state, blind_since=None)
    if state.phase is Phase.PAUSED:
        return state
    return _onward(plan, state, verdict, now, step_requests)


def _onward(plan: Plan, state: State, verdict: Verdict, now: float, step_requests: float) -> State:
    """The move of a phase in which nothing failed."""
    if state.phase is Phase.CANARY:
        return _canary(plan, state, verdict, now, step_requests)
    if state.phase is Phase.SHADOW:
        return _shadow(plan, state, verdict, now)
    if verdict.outcome is Outcome.PASSED:
        return _to(state, _following(plan, state.phase), now, verdict.reason)
    limits = {
        Phase.LOADING: plan.limits.load_s,
        Phase.PREFLIGHT: plan.limits.preflight_s,
        Phase.PROMOTING: plan.limits.promote_s,
    }
    return _given_up(state, verdict, now, limits.get(state.phase, math.inf))


def _following(plan: Plan, phase: Phase) -> Phase:
    after_preflight = Phase.SHADOW if plan.shadow.share > 0.0 else Phase.CANARY
    return {
        Phase.PENDING: Phase.LOADING,
        Phase.LOADING: Phase.PREFLIGHT,
        Phase.PREFLIGHT: after_preflight,
        Phase.PROMOTING: Phase.PROMOTED,
    }[phase]


def _shadow(plan: Plan, state: State, verdict: Verdict, now: float) -> State:
    if verdict.outcome is Outcome.PASSED and now - state.entered_at >= plan.shadow.min_time_s:
        return _to(state, Phase.CANARY, now, verdict.reason)
    return _undecided(plan, state, verdict, now) if now >= _limit_at(plan, state) else state


def _canary(plan: Plan, state: State, verdict: Verdict, now: float, step_requests: float) -> State:
    step = plan.canary[state.step]
    last = state.step == len(plan.canary) - 1
    enough = now - state.entered_at >= step.min_time_s and step_requests >= step.min_requests
    if enough and verdict.outcome is not Outcome.HOLD:
        if last and verdict.outcome is Outcome.PASSED:
            return _to(state, Phase.PROMOTING, now, verdict.reason)
        if not last:
            return replace(state, step=state.step + 1, entered_at=now, reason=verdict.reason)
    return _undecided(plan, state, verdict, now) if now >= _limit_at(plan, state) else state


def _limit_at(plan: Plan, state: State) -> float:
    """When the shadow, or the canary with all its steps, has used up its time."""
    if state.phase is Phase.SHADOW:
        return state.entered_at + plan.limits.shadow_s + state.quiet_s
    began = state.entered_at if state.canary_at is None else state.canary_at
    return began + plan.limits.canary_s + state.quiet_s


def _to(state: State, phase: Phase, now: float, reason: Reason) -> State:
    canary_at = now if phase is Phase.CANARY else state.canary_at
    return replace(
        state,
        phase=phase,
        entered_at=now,
        canary_at=canary_at,
        blind_since=None,
        quiet_s=0.0,
        resume_to=None,
        reason=reason,
    )


def _given_up(state: State, verdict: Verdict, now: float, limit_s: float) -> State:
    """Rolls back from a phase that replicas should have finished long ago."""
    if now - state.entered_at < limit_s:
        return state
    text = f"{state.phase.value} took longer than {limit_s:g} s; last: {verdict.reason.text}"
    return _to(state, Phase.ROLLING_BACK, now, Reason(f"{state.phase.value}.timeout", text))


def _undecided(plan: Plan, state: State, verdict: Verdict, now: float) -> State:
    """What the plan says to do when the evidence has not sufficed in time.

    A rollout that is held back is not promoted even then: a person has to look.
    """
    text = f"not enough evidence within the {state.phase.value}'s time limit; last: {verdict.reason.text}"
    reason = Reason(f"{state.phase.value}.inconclusive", text, verdict.reason.values)
    if plan.on_inconclusive == "rollback":
        return _to(state, Phase.ROLLING_BACK, now, reason)
    if plan.on_inconclusive == "pause" or verdict.outcome is Outcome.HOLD:
        return _pause(state, now, reason)
    return _to(state, Phase.PROMOTING if state.phase is Phase.CANARY else Phase.CANARY, now, reason)


def _blind(plan: Plan, state: State, verdict: Verdict, now: float) -> State:
    if state.phase is Phase.PAUSED:
        return state
    if state.blind_since is None:
        return replace(state, blind_since=now)
    if now - state.blind_since < plan.limits.blind_s:
        return state
    return _pause(state, now, verdict.reason)


def _pause(state: State, now: float, reason: Reason) -> State:
    return replace(_to(state, Phase.PAUSED, now, reason), resume_to=state.phase)


def command(state: State, what: Command, now: float, *, by: str) -> State:
    """The state after a person's command.

    Raises:
        FailedPrecondition: The rollout is not where this command makes sense; the message says where it is.
    """
    phase, reason = state.phase, Reason(f"command.{what}", f"{what} was requested by {by}")
    if phase in FINISHED or phase is Phase.ROLLING_BACK:
        raise FailedPrecondition(f"the rollout is {phase.value}: there is nothing to {what}")
    if what == "abort":
        return _to(state, Phase.ROLLING_BACK, now, reason)
    if what == "pause":
        if phase in (Phase.PAUSED, Phase.PROMOTING):
            raise FailedPrecondition(f"the rollout is {phase.value} and cannot be paused")
        return _pause(state, now, reason)
    if what == "resume":
        if phase is not Phase.PAUSED or state.resume_to is None:
            raise FailedPrecondition(f"the rollout is {phase.value}, not paused")
        # Time limits start again: whoever resumes wants it to go on, not to run into the same limit.
        return _to(state, state.resume_to, now, reason)
    if judged_phase(state) is None:
        raise FailedPrecondition(f"the rollout is {phase.value}: promoting by hand takes a passed preflight")
    return _to(state, Phase.PROMOTING, now, reason)


def next_look(plan: Plan, state: State, outcome: Outcome) -> float:
    """The earliest time at which `advance` may move while the outcome stays as it is.

    Lets the simulator call `advance` only where it matters; a test compares with calling it at every tick.
    """
    if state.phase not in _JUDGED:
        return math.inf
    give_up = _limit_at(plan, state)
    if state.phase is Phase.SHADOW:
        return state.entered_at + plan.shadow.min_time_s if outcome is Outcome.PASSED else give_up
    last = state.step == len(plan.canary) - 1
    if outcome is Outcome.PASSED or (outcome is Outcome.WAIT and not last):
        return min(give_up, state.entered_at + plan.canary[state.step].min_time_s)
    return give_up

"""Explains what a stored rollout decided and why, and derives its decisions again from the record."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from serving.rollout.judge import alphas, judge
from serving.rollout.machine import Phase, State, advance, judged_phase
from serving.rollout.record import Event, Rollout
from serving.rollout.verdict import Outcome, Verdict, percent

_FACTS = ("replicas.", "counts.", "plan.", "quiet.", "latency.no-baseline")


@dataclass(frozen=True, slots=True)
class Replayed:
    """One stored decision, derived again.

    Attributes:
        event: What is stored.
        verdict: What the evidence says now; None if the decision did not come from evidence.
        after: The state that follows; None if it was a person's command.
        same: Whether both are what is stored.
    """

    event: Event
    verdict: Verdict | None
    after: State | None
    same: bool


def replay(rollout: Rollout) -> list[Replayed]:
    """Derives every decision again: the verdict from the stored evidence, the move from the verdict."""
    return [_replayed(rollout, event) for event in rollout.events]


def _replayed(rollout: Rollout, event: Event) -> Replayed:
    if event.outcome == "command":
        return Replayed(event, None, None, same=event.plan == rollout.plan.digest())
    stored = Verdict(Outcome(event.outcome), event.reasons)
    phase = judged_phase(event.before)
    derived = None
    if phase is not None and event.ledger is not None and _from_evidence(stored):
        derived = judge(rollout.plan, event.ledger, shadow=phase is Phase.SHADOW)
    verdict = derived or stored
    after = advance(rollout.plan, event.before, verdict, event.clock_s, event.step_requests)
    same = (
        event.plan == rollout.plan.digest()
        and verdict.outcome is stored.outcome
        and (after.phase, after.step) == (event.after.phase, event.after.step)
    )
    return Replayed(event, derived, after, same)


def _from_evidence(verdict: Verdict) -> bool:
    # What replicas report and what is missing (no counts, no baseline) are facts, not evidence in a ledger.
    return not verdict.reason.code.startswith(_FACTS)


def explain(rollout: Rollout) -> Iterator[str]:
    """The rollout's story, line by line, for a terminal."""
    plan = rollout.plan
    yield f"{rollout.model}: {rollout.stable} → {rollout.candidate}   ({rollout.id}, plan {plan.digest()})"
    yield f"now: {_where(rollout.state, rollout)}: {rollout.state.reason.text}"
    levels = ", ".join(f"{name} {level:.2g}" for name, level in alphas(plan).items())
    yield f"a version that is no worse is rolled back with probability at most {plan.alpha:g} ({levels});"
    yield "one that is worse than a margin, and bad more often than acceptable, is promoted with probability"
    yield f"at most {plan.alpha_promote:g}"
    rates = {name: each.max_overall_rate for name, each in plan.criteria.named().items()}
    overall = ", ".join(f"{name} {percent(rate)}" for name, rate in rates.items() if rate is not None)
    if overall:
        yield f"outside of these: any version is rolled back once both together are bad beyond {overall}"
    ends = {"rollback": "rolled back", "promote": "promoted"}.get(plan.on_inconclusive)
    if ends is not None:
        yield f"and any version is {ends} where the evidence has not sufficed in time (on_inconclusive)"
    for event in rollout.events:
        when = datetime.fromtimestamp(event.at, UTC).isoformat(sep=" ", timespec="seconds")
        yield ""
        yield f"{when}  {_where(event.before, rollout)} → {_where(event.after, rollout)}   [{event.outcome}]"
        yield f"    because {event.after.reason.text}"
        for reason in event.reasons:
            if reason.text != event.after.reason.text:
                yield f"    {reason.code}: {reason.text}"


def _where(state: State, rollout: Rollout) -> str:
    if state.phase is Phase.CANARY:
        step = rollout.plan.canary[state.step]
        return f"canary step {state.step + 1} of {len(rollout.plan.canary)} ({percent(step.weight)})"
    return state.phase.value.replace("_", " ")

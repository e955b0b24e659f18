"""One rollout as it is stored: plan, state, evidence, and every decision with what it was based on."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pydantic import ValidationError

from serving.errors import InvalidInput
from serving.prediction import MOST_VERSION
from serving.rollout import ledger as ledgers
from serving.rollout.evidence import FloatArray
from serving.rollout.ledger import CriterionLedger, Ledger
from serving.rollout.machine import FINISHED, Phase, State, shadow_of, weight_of
from serving.rollout.plan import Plan
from serving.rollout.verdict import Outcome, Reason, Verdict
from serving.routing import Split

FORMAT = 1

# A model's name, its version and a few more characters (see `start`); with a suffix it is a file's name.
_ID = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,239}$")


def check_candidate(version: int) -> None:
    """Raises InvalidInput if no rollout can let this version in."""
    if not 1 <= version <= MOST_VERSION:
        raise InvalidInput(f"{version} is not a version; versions are numbers from 1 to {MOST_VERSION}")


@dataclass(frozen=True, slots=True)
class Event:
    """One move: when, from where to where, and everything it was based on.

    Attributes:
        at: Unix time in seconds.
        clock_s: The rollout's own clock.
        before: The state that was left.
        after: The state that was entered.
        outcome: The verdict's outcome, or `command` for a person's.
        reasons: The verdict's reasons, the deciding one first.
        step_requests: The candidate's requests in the step that was left.
        plan: The plan's digest.
        ledger: The evidence, if the verdict came from evidence.
    """

    at: float
    clock_s: float
    before: State
    after: State
    outcome: str
    reasons: tuple[Reason, ...]
    step_requests: float
    plan: str
    ledger: Ledger | None = None


@dataclass(frozen=True, slots=True)
class Rollout:
    """A rollout of one model from one version to another.

    Attributes:
        id: Unique; also the salt of the routing hash.
        model: The model's name.
        stable: The version that serves.
        candidate: The version that is let in.
        plan: The plan.
        started_at: Unix time in seconds.
        state: Where it is.
        clock_s: The rollout's own clock: seconds during which it was watched.
        seen_at: Unix time of the last look.
        latency_limit_s: What counts as slow; None until the baseline is known.
        ledger: The evidence.
        events: Every move so far, oldest first.
        told: How many of them have been announced.
        revision: Grows with every save; 0 before the first.

    Raises:
        InvalidInput: One of the two cannot be a version.
    """

    id: str
    model: str
    stable: int
    candidate: int
    plan: Plan
    started_at: float
    state: State = field(default_factory=State)
    clock_s: float = 0.0
    seen_at: float = 0.0
    latency_limit_s: float | None = None
    ledger: Ledger | None = None
    events: tuple[Event, ...] = ()
    told: int = 0
    revision: int = 0

    def __post_init__(self) -> None:
        for version in (self.stable, self.candidate):
            if not 0 <= version <= MOST_VERSION:
                raise InvalidInput(f"{version} is not a version; versions are numbers up to {MOST_VERSION}")

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen."""
        return self.state.phase in FINISHED

    @property
    def evidence(self) -> Ledger:
        """The ledger, an empty one before the first interval."""
        return ledgers.empty(ledgers.tests_of(self.plan)) if self.ledger is None else self.ledger

    @property
    def divided(self) -> tuple[tuple[float, float], ...]:
        """When, in Unix seconds, callers began to be divided by which weight of the canary; oldest first."""
        return tuple(
            (event.at, weight_of(self.plan, event.after))
            for event in self.events
            if event.after.phase is Phase.CANARY
        )

    def split(self) -> Split:
        """How the model's traffic is divided in this state."""
        if self.state.phase is Phase.PROMOTED:
            return Split(self.candidate)
        if self.finished:
            return Split(self.stable)
        weight, shadow = weight_of(self.plan, self.state), shadow_of(self.plan, self.state)
        return Split(self.stable, self.candidate, weight, shadow, self.id)

    def moved(self, after: State, verdict: Verdict | None, at: float) -> Rollout:
        """The rollout in its next state, with the event that records the move."""
        outcome = "command" if verdict is None else verdict.outcome.value
        reasons = (after.reason,) if verdict is None else verdict.reasons or (after.reason,)
        event = Event(
            at,
            self.clock_s,
            self.state,
            after,
            outcome,
            reasons,
            float(self.evidence.step_requests),
            self.plan.digest(),
            self.ledger,
        )
        ledger = None if self.ledger is None else ledgers.next_step(self.ledger)
        return replace(self, state=after, ledger=ledger, events=(*self.events, event))


def to_json(rollout: Rollout) -> dict[str, Any]:
    """The rollout as plain values."""
    return {**fields_to_json(rollout), "events": [event_to_json(event) for event in rollout.events]}


def fields_to_json(rollout: Rollout) -> dict[str, Any]:
    """The rollout as plain values, without its events."""
    return {
        "format": FORMAT,
        "revision": rollout.revision,
        "id": rollout.id,
        "model": rollout.model,
        "stable": rollout.stable,
        "candidate": rollout.candidate,
        "plan": rollout.plan.to_json(),
        "started_at": rollout.started_at,
        "state": _state_to_json(rollout.state),
        "clock_s": rollout.clock_s,
        "seen_at": rollout.seen_at,
        "latency_limit_s": rollout.latency_limit_s,
        "ledger": None if rollout.ledger is None else _ledger_to_json(rollout.ledger),
        "told": rollout.told,
    }


def from_json(values: Any, before: tuple[Event, ...] = ()) -> Rollout:
    """The rollout that `to_json` wrote.

    Args:
        values: Its plain values.
        before: Events that come before those in `values`.

    Raises:
        InvalidInput: These are not a rollout's values; the message says which one is wrong.
    """
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else None
        raise InvalidInput(f"not a stored rollout of format {FORMAT} (format is {found!r})")
    try:
        return _from_json(values, before)
    except KeyError as error:
        raise InvalidInput(f"a stored rollout has no field {error}") from error
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(("plan", *map(str, fault["loc"])))
        raise InvalidInput(f"the stored plan is not valid: {place}: {fault['msg']}") from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InvalidInput(f"a field of the stored rollout has a wrong value: {error}") from error


def _from_json(values: dict[str, Any], before: tuple[Event, ...]) -> Rollout:
    if not _ID.match(values["id"]):
        raise ValueError(f"id is {values['id']!r}")
    plan = Plan.of_record(values["plan"])
    state = _state_from_json(values["state"])
    if not 0 <= state.step < len(plan.canary):
        raise ValueError(f"step is {state.step}, but the plan has {len(plan.canary)} steps")
    limit = values["latency_limit_s"]
    events = (*before, *(_event_from_json(event, plan) for event in values["events"]))
    return Rollout(
        id=values["id"],
        model=str(values["model"]),
        stable=int(values["stable"]),
        candidate=int(values["candidate"]),
        plan=plan,
        started_at=float(values["started_at"]),
        state=state,
        clock_s=float(values["clock_s"]),
        seen_at=float(values["seen_at"]),
        latency_limit_s=None if limit is None else float(limit),
        ledger=_ledger_from_json(values["ledger"], plan),
        events=events,
        # Absent if written by a gateway that did not keep how many it had announced.
        told=int(values.get("told", len(events))),
        revision=int(values["revision"]),
    )


def proven(values: Any) -> int | None:
    """The version that serves according to a record that may be partly unreadable; None if unknown."""
    try:
        phase = Phase(values["state"]["phase"])
        version = int(values["candidate" if phase is Phase.PROMOTED else "stable"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return version if 1 <= version <= MOST_VERSION else None


def _state_to_json(state: State) -> dict[str, Any]:
    return dataclasses.asdict(state) | {"reason": reason_to_json(state.reason)}


def _state_from_json(values: dict[str, Any]) -> State:
    resume_to = values["resume_to"]
    canary_at, blind_since = values["canary_at"], values["blind_since"]
    return State(
        phase=Phase(values["phase"]),
        step=int(values["step"]),
        entered_at=float(values["entered_at"]),
        canary_at=None if canary_at is None else float(canary_at),
        blind_since=None if blind_since is None else float(blind_since),
        # Absent if written by a gateway whose limits counted quiet hours.
        quiet_s=float(values.get("quiet_s", 0.0)),
        resume_to=None if resume_to is None else Phase(resume_to),
        reason=_reason_from_json(values["reason"]),
    )


def reason_to_json(reason: Reason) -> dict[str, Any]:
    """A reason as plain values. JSON has no NaN, which a self-test may give; the text has it."""
    values = {name: number for name, number in reason.values.items() if math.isfinite(number)}
    return {"code": reason.code, "text": reason.text, "values": values}


def _reason_from_json(values: dict[str, Any]) -> Reason:
    numbers = {str(name): float(number) for name, number in values["values"].items()}
    return Reason(str(values["code"]), str(values["text"]), numbers)


def event_to_json(event: Event) -> dict[str, Any]:
    """An event as plain values."""
    return {
        "at": event.at,
        "clock_s": event.clock_s,
        "before": _state_to_json(event.before),
        "after": _state_to_json(event.after),
        "outcome": event.outcome,
        "reasons": [reason_to_json(reason) for reason in event.reasons],
        "step_requests": event.step_requests,
        "plan": event.plan,
        "ledger": None if event.ledger is None else _ledger_to_json(event.ledger),
    }


def _event_from_json(values: dict[str, Any], plan: Plan) -> Event:
    outcome = str(values["outcome"])
    if outcome != "command":
        Outcome(outcome)
    return Event(
        at=float(values["at"]),
        clock_s=float(values["clock_s"]),
        before=_state_from_json(values["before"]),
        after=_state_from_json(values["after"]),
        outcome=outcome,
        reasons=tuple(_reason_from_json(reason) for reason in values["reasons"]),
        step_requests=float(values["step_requests"]),
        plan=str(values["plan"]),
        ledger=_ledger_from_json(values["ledger"], plan),
    )


_CRITERION_FIELDS = tuple(each.name for each in dataclasses.fields(CriterionLedger))
_LEDGER_ARRAYS = ("compared", "agreed", "split", "split_weight", "log_split_before", "step_requests")


def _ledger_to_json(ledger: Ledger) -> dict[str, Any]:
    criteria = {
        name: {each: _numbers_to_json(getattr(criterion, each)) for each in _CRITERION_FIELDS}
        for name, criterion in ledger.criteria.items()
    }
    arrays = {name: _numbers_to_json(getattr(ledger, name)) for name in _LEDGER_ARRAYS}
    waiting = {place: _numbers_to_json(counts) for place, counts in ledger.waiting.items()}
    return {"criteria": criteria, "classes": list(ledger.classes), **arrays, "waiting": waiting}


def _ledger_from_json(values: dict[str, Any] | None, plan: Plan) -> Ledger | None:
    """The ledger, with the shapes that a ledger of this plan has."""
    if values is None:
        return None
    # Every event names the classes: interned, since they are kept for as long as the record is.
    classes = tuple(sys.intern(str(name)) for name in values["classes"])
    model = ledgers.empty(ledgers.tests_of(plan), classes)
    stored = values["criteria"]
    criteria = {
        # Absent if written by a gateway that did not know the criterion.
        name: _criterion_from_json(stored[name], like) if name in stored else like
        for name, like in model.criteria.items()
    }
    arrays = {name: _numbers_from_json(values[name], getattr(model, name).shape) for name in _LEDGER_ARRAYS}
    # Absent if written by a gateway that did not keep what only one arm was asked.
    waiting = {
        str(place): _numbers_from_json(counts, (4,)) for place, counts in values.get("waiting", {}).items()
    }
    return Ledger(criteria=criteria, classes=model.classes, **arrays, waiting=waiting)


def _criterion_from_json(values: dict[str, Any], like: CriterionLedger) -> CriterionLedger:
    return CriterionLedger(
        **{each: _numbers_from_json(values[each], getattr(like, each).shape) for each in _CRITERION_FIELDS}
    )


def _numbers_to_json(numbers: FloatArray) -> Any:
    # JSON has no minus infinity, which an alternative without a stake has; null stands for it.
    values = np.where(np.isneginf(numbers), np.nan, numbers).tolist()
    if isinstance(values, list):
        return [None if number != number else number for number in values]
    return values


def _numbers_from_json(values: Any, shape: tuple[int, ...]) -> FloatArray:
    filled = [-np.inf if number is None else number for number in values] if shape else values
    numbers = np.asarray(filled, dtype=np.float64)
    if numbers.shape != shape or np.isnan(numbers).any():
        raise ValueError(f"numbers of shape {list(numbers.shape)} where {list(shape)} are due")
    return numbers

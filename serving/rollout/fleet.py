"""Which versions each replica should hold in each state of a rollout, and how far the replicas are. Pure.

The order is safe: {stable, candidate} → AVAILABLE on enough replicas → traffic → label moved → drained →
{candidate}. With `max_unavailable` a replica holds only one version, and they are swapped a few at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serving.backends.tfserving import VersionStatus
from serving.rollout.machine import Phase
from serving.rollout.record import Rollout
from serving.rollout.verdict import Outcome, Reason, Verdict, percent

# Replicas are asked for their states about once a second. A failure seen sooner than this after the loading
# began may be that of an earlier attempt.
_LEARNED_S = 3.0


@dataclass(frozen=True, slots=True)
class Seen:
    """One replica as it was when last asked: the states of the model's versions there."""

    address: str
    reachable: bool
    states: Mapping[int, VersionStatus]

    def has(self, version: int) -> bool:
        """Whether it can answer by this version."""
        return self.reachable and self._state(version) == "AVAILABLE"

    def failed(self, version: int) -> bool:
        """Whether it tried to load this version and could not."""
        return self.lost(version) and bool(self.states[version].error)

    def lost(self, version: int) -> bool:
        """Whether it no longer has this version, or never could load it."""
        status = self.states.get(version)
        return self.reachable and status is not None and status.state == "END"

    def _state(self, version: int) -> str:
        status = self.states.get(version)
        return "" if status is None else status.state


Holdings = dict[str, frozenset[int]]
"""The versions that each replica should hold, by its address."""


def holdings(rollout: Rollout, replicas: Sequence[Seen], spent_s: float) -> Holdings:
    """What each replica should hold, `spent_s` seconds after the rollout entered its phase."""
    stable, candidate = rollout.stable, rollout.candidate
    phase = rollout.state.under_way
    if phase is Phase.PENDING or phase is Phase.ROLLED_BACK:
        return _all(replicas, stable)
    if phase is Phase.PROMOTED:
        return _all(replicas, candidate)
    if rollout.plan.max_unavailable is not None:
        return _swapped(rollout, replicas, phase, rollout.plan.max_unavailable)
    drained = spent_s >= rollout.plan.limits.drain_s
    if phase is Phase.PROMOTING and drained:
        return {each.address: _only_once_there(each, candidate, stable) for each in replicas}
    if phase is Phase.ROLLING_BACK and drained:
        return {each.address: _only_once_there(each, stable, candidate) for each in replicas}
    if phase is Phase.ROLLING_BACK:
        # A candidate that is not there has nothing to drain, and must not be loaded any more.
        return {
            each.address: frozenset((stable, candidate)) if each.has(candidate) else frozenset((stable,))
            for each in replicas
        }
    return _all(replicas, stable, candidate)


def _all(replicas: Sequence[Seen], *versions: int) -> Holdings:
    return {each.address: frozenset(versions) for each in replicas}


def _only_once_there(replica: Seen, version: int, other: int) -> frozenset[int]:
    """Just this version; as long as it is not there, the other one as well."""
    return frozenset((version,)) if replica.has(version) else frozenset((version, other))


def _swapped(rollout: Rollout, replicas: Sequence[Seen], phase: Phase, most: int) -> Holdings:
    """One version per replica: a few try the candidate; then the rest follow, a few at a time."""
    if phase in (Phase.PROMOTING, Phase.ROLLING_BACK):
        ordered = sorted(replicas, key=lambda each: each.address)
        goal = rollout.candidate if phase is Phase.PROMOTING else rollout.stable
        other = rollout.stable if phase is Phase.PROMOTING else rollout.candidate
        there = {each.address for each in ordered if each.has(goal)}
        next_ones = [each.address for each in ordered if each.address not in there][:most]
        goals = there | set(next_ones)
        return {each.address: frozenset((goal if each.address in goals else other,)) for each in ordered}
    trying = _that_try(rollout, replicas)
    return {
        each.address: frozenset((rollout.candidate if each in trying else rollout.stable,))
        for each in replicas
    }


def _that_try(rollout: Rollout, replicas: Sequence[Seen]) -> list[Seen]:
    """The replicas that hold the candidate before it is promoted: first of all those that have, or had, it.

    Replicas come and go, and a new one must not take the place of one that holds it.
    """
    candidate = rollout.candidate

    def place(each: Seen) -> tuple[bool, bool, str]:
        return not each.has(candidate), candidate not in each.states, each.address

    return sorted(replicas, key=place)[: _trying(rollout, replicas)]


def replicas_verdict(rollout: Rollout, replicas: Sequence[Seen]) -> Verdict | None:
    """What the replicas' states mean for the rollout's phase; None if they leave judging to the evidence."""
    match rollout.state.phase:
        case Phase.PENDING:
            return _pending(rollout, replicas)
        case Phase.LOADING:
            return _loading(rollout, replicas)
        case Phase.PROMOTING:
            return _settled(rollout.candidate, rollout.stable, replicas)
        case Phase.ROLLING_BACK:
            return _settled(rollout.stable, rollout.candidate, replicas)
        case _:
            return _still_there(rollout, replicas)


def _pending(rollout: Rollout, replicas: Sequence[Seen]) -> Verdict:
    if rollout.candidate == rollout.stable:
        text = f"version {rollout.candidate} is the one that serves: there is nothing to let in"
        return _verdict(Outcome.FAIL, "replicas.serves-already", text)
    if rollout.plan.max_unavailable is not None and len(replicas) < 2:
        text = "max_unavailable swaps replicas one by one, which takes two at least; there is one"
        return _verdict(Outcome.FAIL, "replicas.too-few", text)
    if not any(each.has(rollout.stable) for each in replicas):
        return _verdict(
            Outcome.WAIT, "replicas.no-stable", f"no replica has the stable version {rollout.stable}"
        )
    text = f"replicas have the stable version {rollout.stable}"
    trying, heaviest = _trying(rollout, replicas), max(step.weight for step in rollout.plan.canary)
    if heaviest > trying / len(replicas):
        text += (
            f"; a weight of {percent(heaviest)} is more than an even share of the {trying} of "
            f"{len(replicas)} replicas that try the candidate (max_unavailable)"
        )
    return _verdict(Outcome.PASSED, "replicas.ready", text)


def _trying(rollout: Rollout, replicas: Sequence[Seen]) -> int:
    """How many replicas hold the candidate before it is promoted."""
    if rollout.plan.max_unavailable is None:
        return len(replicas)
    return min(rollout.plan.max_unavailable, len(replicas) - 1)


def _needed(rollout: Rollout, replicas: Sequence[Seen]) -> int:
    """On how many replicas the candidate must be."""
    return max(1, math.ceil(rollout.plan.preflight.min_replicas * _trying(rollout, replicas)))


def _failures(rollout: Rollout, replicas: Sequence[Seen]) -> Verdict | None:
    """A failure, if too few replicas are left that can have the candidate."""
    lost = [each for each in _that_try(rollout, replicas) if _cannot_have(rollout, each)]
    trying = len(replicas) if rollout.plan.max_unavailable is None else len(lost)
    if not lost or trying - len(lost) >= _needed(rollout, replicas):
        return None
    why = next(
        (each.states[rollout.candidate].error for each in lost if each.states[rollout.candidate].error), ""
    )
    text = f"{len(lost)} of {len(replicas)} replicas cannot have version {rollout.candidate}"
    text += f": {why[:500]}" if why else ": it was unloaded, and cannot be loaded again"
    return _verdict(Outcome.FAIL, "replicas.cannot-load", text)


def _cannot_have(rollout: Rollout, replica: Seen) -> bool:
    """Whether a replica has lost the candidate, or cannot load it.

    END is left over from earlier while it is not to be loaded yet; so is END without an error while it loads.
    """
    state = rollout.state
    match state.under_way:
        case Phase.PENDING:
            return False
        case Phase.LOADING:
            return replica.failed(rollout.candidate) and rollout.clock_s - state.entered_at >= _LEARNED_S
        case _:
            return replica.lost(rollout.candidate)


def _loading(rollout: Rollout, replicas: Sequence[Seen]) -> Verdict:
    failure = _failures(rollout, replicas)
    if failure is not None:
        return failure
    having, needed = sum(each.has(rollout.candidate) for each in replicas), _needed(rollout, replicas)
    text = (
        f"version {rollout.candidate} is there on {having} of {len(replicas)} replicas; {needed} are needed"
    )
    outcome = Outcome.PASSED if having >= needed else Outcome.WAIT
    return _verdict(outcome, "replicas.loaded" if having >= needed else "replicas.loading", text)


def _settled(goal: int, other: int, replicas: Sequence[Seen]) -> Verdict:
    reachable = [each for each in replicas if each.reachable]
    done = [each for each in reachable if each.has(goal) and (other == goal or not each.has(other))]
    text = f"{len(done)} of {len(replicas)} replicas have version {goal} only"
    if reachable and len(done) == len(reachable):
        return _verdict(Outcome.PASSED, "replicas.settled", text)
    return _verdict(Outcome.WAIT, "replicas.settling", text)


def _still_there(rollout: Rollout, replicas: Sequence[Seen]) -> Verdict | None:
    failure = _failures(rollout, replicas)
    if failure is not None:
        return failure
    for version in (rollout.stable, rollout.candidate):
        if not any(each.has(version) for each in replicas):
            text = f"no replica has version {version} at the moment"
            return _verdict(Outcome.INCONCLUSIVE, "replicas.gone", text)
    return None


def _verdict(outcome: Outcome, code: str, text: str) -> Verdict:
    return Verdict(outcome, (Reason(code, text),))

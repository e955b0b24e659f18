"""Rollouts for tests: an empty one, and one that was walked through its phases."""

from __future__ import annotations

from dataclasses import replace

from serving.rollout import ledger as ledgers
from serving.rollout.judge import judge
from serving.rollout.ledger import Arms, Interval, Pairs
from serving.rollout.machine import Phase, advance, judged_phase, moved, weight_of
from serving.rollout.plan import Plan
from serving.rollout.record import Rollout
from serving.rollout.verdict import Outcome, Reason, Verdict

PLAN = Plan.model_validate(
    {
        "shadow": {"share": 0.5, "min_time_s": 5, "min_samples": 50},
        "canary": [
            {"weight": 0.1, "min_time_s": 5, "min_requests": 5},
            {"weight": 0.5, "min_time_s": 5, "min_requests": 5},
        ],
    }
)


def new_rollout(id_: str = "digits-2", model: str = "digits", started_at: float = 1e9) -> Rollout:
    return Rollout(id=id_, model=model, stable=1, candidate=2, plan=PLAN, started_at=started_at)


def walk(rollout: Rollout, *, bad_rate: float, seconds: int = 400) -> Rollout:
    """Watches a rollout to the end of its canary; stable is bad at 1 %, the candidate at `bad_rate`."""
    tests = ledgers.tests_of(rollout.plan)
    for second in range(1, seconds + 1):
        phase = judged_phase(rollout.state)
        if phase is None:
            verdict = Verdict(Outcome.PASSED, (Reason("replicas.ready", "every replica is ready"),))
        else:
            ledger = rollout.evidence
            for name in ("3", "7")[len(ledger.classes) :]:
                ledger = ledgers.with_class(ledger, name)
            rollout = replace(rollout, ledger=ledgers.record(tests, ledger, second_of(rollout, bad_rate)))
            verdict = judge(rollout.plan, rollout.evidence, shadow=phase is Phase.SHADOW)
        rollout = replace(rollout, clock_s=float(second), seen_at=rollout.started_at + second)
        requests = float(rollout.evidence.step_requests)
        after = advance(rollout.plan, rollout.state, verdict, rollout.clock_s, requests)
        if moved(rollout.state, after):
            rollout = rollout.moved(after, verdict, rollout.seen_at)
            if after.phase in (Phase.PROMOTING, Phase.ROLLING_BACK):
                break
        else:
            rollout = replace(rollout, state=after)
    return rollout


def second_of(rollout: Rollout, bad_rate: float) -> Interval:
    weight = weight_of(rollout.plan, rollout.state)
    candidate_n = round(1000 * weight)
    stable_n = 1000 - candidate_n
    arms = Arms(candidate_n, round(candidate_n * bad_rate), stable_n, round(stable_n * 0.01))
    slow = replace(arms, candidate_bad=round(candidate_n * 0.01))
    if rollout.state.phase is Phase.SHADOW:
        pairs = Pairs(500, 0, 0)
        return Interval({"errors": arms, "latency": slow}, {"errors": pairs}, ([250, 250], [249, 245]))
    return Interval({"errors": arms, "latency": slow}, weight=weight)

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import FailedPrecondition
from serving.rollout.machine import (
    FINISHED,
    Command,
    Phase,
    State,
    advance,
    command,
    judged_phase,
    moved,
    next_look,
    shadow_of,
    spent_quietly,
    weight_of,
)
from serving.rollout.plan import Plan
from serving.rollout.verdict import Outcome, Reason, Verdict

PLAN = Plan.model_validate(
    {
        "shadow": {"share": 0.5, "min_time_s": 10},
        "canary": [
            {"weight": 0.1, "min_time_s": 20, "min_requests": 5},
            {"weight": 0.5, "min_time_s": 30, "min_requests": 5},
        ],
        "limits": {"load_s": 100, "preflight_s": 100, "shadow_s": 200, "canary_s": 300, "blind_s": 50},
    }
)

states = st.builds(
    State,
    phase=st.sampled_from(Phase),
    step=st.integers(0, 1),
    entered_at=st.floats(0, 1000),
    canary_at=st.none() | st.floats(0, 1000),
    blind_since=st.none() | st.floats(0, 1000),
    quiet_s=st.floats(0, 1000),
    resume_to=st.none() | st.sampled_from([Phase.LOADING, Phase.SHADOW, Phase.CANARY]),
)
plans = st.sampled_from(
    [
        PLAN,
        Plan(),
        PLAN.model_copy(update={"on_inconclusive": "rollback"}),
        PLAN.model_copy(update={"on_inconclusive": "promote"}),
    ]
)

# Every move that the rules of rollouts know.
MOVES = {
    Phase.PENDING: {Phase.LOADING},
    Phase.LOADING: {Phase.PREFLIGHT},
    Phase.PREFLIGHT: {Phase.SHADOW, Phase.CANARY},
    Phase.SHADOW: {Phase.CANARY},
    Phase.CANARY: {Phase.CANARY, Phase.PROMOTING},
    Phase.PROMOTING: {Phase.PROMOTED},
    Phase.PAUSED: set(),
    Phase.ROLLING_BACK: {Phase.ROLLED_BACK},
    Phase.PROMOTED: set(),
    Phase.ROLLED_BACK: set(),
}


def verdict(outcome: Outcome) -> Verdict:
    return Verdict(outcome, (Reason(f"test.{outcome.value}", "for the test"),))


@given(plans, states, st.sampled_from(Outcome), st.floats(0, 1e5), st.floats(0, 100))
def test_every_state_and_outcome_leads_to_a_known_move(
    plan: Plan, state: State, outcome: Outcome, now: float, requests: float
) -> None:
    after = advance(plan, state, verdict(outcome), now, requests)
    if not moved(state, after):
        assert after.entered_at == state.entered_at
        return
    allowed = set(MOVES[state.phase])
    if state.phase not in FINISHED:
        allowed |= {Phase.ROLLING_BACK, Phase.PAUSED} - {state.phase}
    if state.phase is Phase.ROLLING_BACK:
        allowed = {Phase.ROLLED_BACK}
    assert after.phase in allowed
    assert after.entered_at == now
    assert after.reason.text


@given(plans, states, st.floats(0, 1e5))
def test_harm_rolls_back_from_everywhere_and_nothing_else_raises_the_weight(
    plan: Plan, state: State, now: float
) -> None:
    after = advance(plan, state, verdict(Outcome.FAIL), now, 100.0)
    if state.phase in FINISHED or state.phase is Phase.ROLLING_BACK:
        assert after == state
    else:
        assert after.phase is Phase.ROLLING_BACK
        assert weight_of(plan, after) == 0.0
    for outcome in (Outcome.HOLD, Outcome.INCONCLUSIVE):
        kept = advance(plan, state, verdict(outcome), now, 100.0)
        assert weight_of(plan, kept) <= weight_of(plan, state)


def walk(*steps: tuple[Outcome, float, float], state: State | None = None, plan: Plan = PLAN) -> State:
    state = state or State()
    for outcome, now, requests in steps:
        state = advance(plan, state, verdict(outcome), now, requests)
    return state


def test_a_good_version_walks_through_every_phase() -> None:
    passed = Outcome.PASSED
    state = walk((passed, 1, 0), (passed, 2, 0), (passed, 3, 0))
    assert state.phase is Phase.SHADOW
    assert (weight_of(PLAN, state), shadow_of(PLAN, state)) == (0.0, 0.5)
    assert walk((passed, 12, 0), state=state).phase is Phase.SHADOW, "the least time is not over"
    state = walk((passed, 13, 0), state=state)
    assert (state.phase, state.step, weight_of(PLAN, state)) == (Phase.CANARY, 0, 0.1)
    assert walk((passed, 33, 4), state=state).step == 0, "too few requests"
    state = walk((Outcome.WAIT, 33, 5), state=state)
    assert (state.step, weight_of(PLAN, state)) == (1, 0.5)
    assert walk((passed, 62, 5), state=state).phase is Phase.CANARY, "each step has a least time of its own"
    assert walk((Outcome.WAIT, 63, 5), state=state).phase is Phase.CANARY, "nothing is shown yet"
    state = walk((passed, 63, 5), state=state)
    assert (state.phase, weight_of(PLAN, state)) == (Phase.PROMOTING, 1.0)
    state = walk((passed, 64, 0), state=state)
    assert (state.phase, weight_of(PLAN, state)) == (Phase.PROMOTED, 1.0)


def test_a_step_is_a_move_and_a_pause_of_the_shadow_copies_nothing() -> None:
    shadow, first = State(Phase.SHADOW), State(Phase.CANARY)
    assert moved(first, replace(first, step=1))
    assert not moved(first, replace(first, blind_since=1.0))
    assert shadow_of(PLAN, command(shadow, "pause", 1.0, by="somebody")) == 0.0


def test_suspicion_holds_the_weight() -> None:
    state = State(Phase.CANARY, canary_at=0.0)
    assert walk((Outcome.HOLD, 100, 50), state=state) == state
    assert walk((Outcome.HOLD, 100, 50), (Outcome.WAIT, 101, 50), state=state).step == 1


def test_without_a_shadow_share_the_canary_follows_the_preflight() -> None:
    plan = Plan.model_validate({"shadow": {"share": 0.0}})
    state = walk((Outcome.PASSED, 5, 0), state=State(Phase.PREFLIGHT), plan=plan)
    assert (state.phase, state.canary_at) == (Phase.CANARY, 5)


@pytest.mark.parametrize(
    ("phase", "limit_s"), [(Phase.LOADING, 100), (Phase.PREFLIGHT, 100), (Phase.PROMOTING, 900)]
)
def test_replicas_that_do_not_get_ready_in_time_roll_back(phase: Phase, limit_s: float) -> None:
    state = State(phase, entered_at=10.0)
    assert walk((Outcome.WAIT, 9 + limit_s, 0), state=state) == state
    after = walk((Outcome.WAIT, 10 + limit_s, 0), state=state)
    assert (after.phase, after.reason.code) == (Phase.ROLLING_BACK, f"{phase.value}.timeout")


@pytest.mark.parametrize(
    ("choice", "phase"),
    [("pause", Phase.PAUSED), ("rollback", Phase.ROLLING_BACK), ("promote", Phase.PROMOTING)],
)
def test_evidence_that_never_suffices_ends_as_the_plan_says(choice: str, phase: Phase) -> None:
    plan = PLAN.model_copy(update={"on_inconclusive": choice})
    state = State(Phase.CANARY, step=1, entered_at=290.0, canary_at=0.0)
    after = walk((Outcome.WAIT, 300, 50), state=state, plan=plan)
    assert (after.phase, after.reason.code) == (phase, "canary.inconclusive")


@pytest.mark.parametrize(
    ("state", "limit_s"),
    [(State(Phase.SHADOW, entered_at=5.0), 200.0), (State(Phase.CANARY, step=1, canary_at=5.0), 300.0)],
)
@pytest.mark.parametrize("choice", ["pause", "rollback", "promote"])
def test_a_time_limit_waits_as_long_as_quiet_hours_do(state: State, limit_s: float, choice: str) -> None:
    plan = PLAN.model_copy(update={"on_inconclusive": choice})
    night_s = 8 * 3600.0
    morning = spent_quietly(spent_quietly(state, night_s / 2), night_s / 2)
    end = 5.0 + night_s + limit_s
    for now in (5.0 + night_s / 2, 5.0 + night_s, end - 1.0):
        assert walk((Outcome.HOLD, now, 0), (Outcome.WAIT, now, 0), state=morning, plan=plan) == morning
    after = walk((Outcome.WAIT, end, 0), state=morning, plan=plan)
    assert after.reason.code == f"{state.phase.value}.inconclusive"
    assert after.quiet_s == 0.0, "what comes next has limits of its own"


@pytest.mark.parametrize(
    ("state", "following"),
    [
        (State(Phase.SHADOW), Phase.CANARY),
        (State(Phase.CANARY, step=1, canary_at=0.0), Phase.PROMOTING),
    ],
)
def test_what_is_held_back_is_not_promoted_for_want_of_evidence(state: State, following: Phase) -> None:
    plan = PLAN.model_copy(update={"on_inconclusive": "promote"})
    held = walk((Outcome.HOLD, 300, 50), state=state, plan=plan)
    assert (held.phase, held.resume_to) == (Phase.PAUSED, state.phase)
    assert walk((Outcome.WAIT, 300, 0), state=state, plan=plan).phase is following


def test_blindness_pauses_after_its_time_and_sight_starts_it_anew() -> None:
    state = State(Phase.CANARY, canary_at=0.0)
    blind = walk((Outcome.INCONCLUSIVE, 1, 50), (Outcome.INCONCLUSIVE, 50, 50), state=state)
    assert (blind.phase, blind.blind_since) == (Phase.CANARY, 1)
    seen = walk((Outcome.HOLD, 50.5, 50), state=blind)
    assert seen.blind_since is None
    paused = walk((Outcome.INCONCLUSIVE, 51, 50), state=blind)
    assert (paused.phase, paused.resume_to) == (Phase.PAUSED, Phase.CANARY)
    assert judged_phase(paused) is Phase.CANARY
    assert weight_of(PLAN, paused) == 0.1


def test_commands() -> None:
    canary = State(Phase.CANARY, step=1, entered_at=5.0, canary_at=1.0)
    paused = command(canary, "pause", 9.0, by="somebody")
    assert (paused.phase, paused.resume_to, weight_of(PLAN, paused)) == (Phase.PAUSED, Phase.CANARY, 0.5)
    assert walk((Outcome.PASSED, 500, 99), state=paused) == paused
    assert walk((Outcome.FAIL, 500, 99), state=paused).phase is Phase.ROLLING_BACK
    resumed = command(paused, "resume", 600.0, by="somebody")
    assert (resumed.phase, resumed.step, resumed.canary_at) == (Phase.CANARY, 1, 600.0)
    shadow = command(State(Phase.SHADOW, entered_at=5.0), "pause", 9.0, by="somebody")
    assert command(shadow, "resume", 600.0, by="somebody").entered_at == 600.0
    assert command(shadow, "resume", 600.0, by="somebody").canary_at is None
    assert command(canary, "promote", 9.0, by="somebody").phase is Phase.PROMOTING
    aborted = command(canary, "abort", 9.0, by="somebody")
    assert (aborted.phase, aborted.reason.text) == (Phase.ROLLING_BACK, "abort was requested by somebody")


@pytest.mark.parametrize(
    ("phase", "what", "message"),
    [
        (Phase.PROMOTED, "abort", "is promoted: there is nothing to abort"),
        (Phase.ROLLING_BACK, "promote", "there is nothing to promote"),
        (Phase.CANARY, "resume", "is canary, not paused"),
        (Phase.PAUSED, "pause", "cannot be paused"),
        (Phase.PROMOTING, "pause", "is promoting and cannot be paused"),
        (Phase.LOADING, "promote", "takes a passed preflight"),
    ],
)
def test_commands_that_make_no_sense_where_it_is(phase: Phase, what: Command, message: str) -> None:
    with pytest.raises(FailedPrecondition, match=message):
        command(State(phase), what, 1.0, by="somebody")


@given(plans, states, st.sampled_from([Outcome.PASSED, Outcome.WAIT, Outcome.HOLD]), st.floats(0, 2000))
def test_nothing_moves_before_the_next_look(plan: Plan, state: State, outcome: Outcome, now: float) -> None:
    if state.phase not in (Phase.SHADOW, Phase.CANARY):
        return
    state = replace(state, blind_since=None)
    after = advance(plan, state, verdict(outcome), now, 1e9)
    if now < next_look(plan, state, outcome):
        assert after == state

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from serving.errors import InvalidInput
from serving.rollout import ledger as ledgers
from serving.rollout.explain import explain, replay
from serving.rollout.judge import judge
from serving.rollout.ledger import Arms, Interval
from serving.rollout.machine import Phase, State, advance, command
from serving.rollout.plan import Plan
from serving.rollout.record import Rollout, from_json, proven, to_json
from serving.rollout.verdict import Outcome, Reason, Verdict
from serving.routing import Split
from tests.rollout.stored import new_rollout, walk


@pytest.fixture(scope="module")
def good() -> Rollout:
    return walk(new_rollout(), bad_rate=0.01)


@pytest.fixture(scope="module")
def bad() -> Rollout:
    return walk(new_rollout(), bad_rate=0.1)


def test_a_walk_ends_as_it_should(good: Rollout, bad: Rollout) -> None:
    assert good.state.phase is Phase.PROMOTING
    assert [event.after.phase for event in good.events] == [
        Phase.LOADING,
        Phase.PREFLIGHT,
        Phase.SHADOW,
        Phase.CANARY,
        Phase.CANARY,
        Phase.PROMOTING,
    ]
    assert (bad.state.phase, bad.state.reason.code) == (Phase.ROLLING_BACK, "errors.worse")


def test_each_step_counts_its_requests_anew(good: Rollout) -> None:
    steps = [event for event in good.events if event.before.phase is Phase.CANARY]
    assert [event.step_requests > 0.0 for event in steps] == [True, True]
    assert float(good.evidence.step_requests) == 0.0
    total = float(good.evidence.criteria["errors"].candidate_n)
    assert sum(event.step_requests for event in steps) == total


def test_a_rollout_survives_storing(good: Rollout) -> None:
    values = json.loads(json.dumps(to_json(good), allow_nan=False))
    back = from_json(values)
    assert to_json(back) == to_json(good)
    assert (back.plan, back.state, back.id) == (good.plan, good.state, good.id)
    np.testing.assert_array_equal(
        back.evidence.criteria["errors"].within, good.evidence.criteria["errors"].within
    )


def test_what_waits_for_the_other_arm_survives_storing() -> None:
    tests = ledgers.tests_of(new_rollout().plan)
    alone = Interval({"errors": Arms(0, 0, 7, 1), "accuracy": Arms(2, 1, 0, 0)}, late="0.1")
    values = to_json(replace(new_rollout(), ledger=ledgers.record(tests, new_rollout().evidence, alone)))
    back = from_json(json.loads(json.dumps(values, allow_nan=False))).evidence.waiting
    assert {place: counts.tolist() for place, counts in back.items()} == {
        "errors/0.1": [0.0, 0.0, 7.0, 1.0],
        "accuracy/0.1": [2.0, 1.0, 0.0, 0.0],
    }
    del values["ledger"]["waiting"]  # as a gateway of an earlier release wrote it
    assert from_json(values).evidence.waiting == {}


def test_a_reason_whose_number_is_none_is_stored_with_its_text() -> None:
    reason = Reason("preflight.self-test", "off by nan", {"difference": float("nan"), "tolerance": 0.005})
    verdict = Verdict(Outcome.FAIL, (reason,))
    rollout = new_rollout().moved(State(Phase.ROLLING_BACK, reason=reason), verdict, 1e9)
    back = from_json(json.loads(json.dumps(to_json(rollout), allow_nan=False)))
    for each in (back.state.reason, back.events[0].after.reason, back.events[0].reasons[0]):
        assert each == Reason("preflight.self-test", "off by nan", {"tolerance": 0.005})


def test_a_state_of_before_quiet_hours_were_counted_is_read() -> None:
    values = to_json(replace(new_rollout(), state=State(Phase.SHADOW, quiet_s=7.0)))
    assert from_json(values).state.quiet_s == 7.0
    del values["state"]["quiet_s"]
    assert from_json(values).state == State(Phase.SHADOW)


def test_what_another_release_wrote_is_read_replayed_and_written_again(good: Rollout) -> None:
    values = to_json(good)
    del values["plan"]["quiet_hours"]
    values["plan"]["shadow"]["colour"] = "red"
    text = json.dumps(values["plan"], sort_keys=True)
    for event in values["events"]:
        event["plan"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    back = from_json(values)
    assert back.plan.unknown == ("shadow.colour",)
    assert all(each.same for each in replay(back))
    assert to_json(back) == values


def test_a_criterion_that_a_record_does_not_know_has_seen_nothing(good: Rollout) -> None:
    values = to_json(good)
    for each in (values, *values["events"]):
        if each["ledger"] is not None:
            del each["ledger"]["criteria"]["accuracy"]
    back = from_json(values).evidence.criteria
    assert float(back["errors"].candidate_n) == float(good.evidence.criteria["errors"].candidate_n) > 0.0
    assert float(back["accuracy"].candidate_n) == 0.0


def test_what_is_wrong_with_a_plan_is_told_with_its_place(good: Rollout) -> None:
    values = to_json(good)
    values["plan"]["canary"][1]["weight"] = 7
    with pytest.raises(InvalidInput, match=r"plan is not valid: plan\.canary\.1\.weight: Input should be"):
        from_json(values)


@pytest.mark.parametrize(
    ("phase", "version"),
    [("promoted", 2), ("promoting", 1), ("canary", 1), ("rolled_back", 1), ("gone", None)],
)
def test_of_a_record_it_can_be_told_which_version_is_proven(phase: str, version: int | None) -> None:
    values = to_json(new_rollout())
    values["state"]["phase"] = phase
    values["plan"] = "torn"
    assert proven(values) == version
    assert proven(values | {"stable": 0, "candidate": 0}) is None
    assert proven([values]) is None


def test_replay_derives_every_decision_again(good: Rollout, bad: Rollout) -> None:
    for rollout in (good, bad):
        replayed = replay(from_json(to_json(rollout)))
        assert len(replayed) == len(rollout.events)
        assert all(each.same for each in replayed)
        assert any(each.verdict is not None for each in replayed)


@pytest.mark.parametrize("code", ["latency.no-baseline", "quiet.hours"])
def test_replay_derives_a_pause_for_want_of_what_is_in_no_ledger(code: str) -> None:
    rollout = new_rollout()
    limit_s = rollout.plan.limits.shadow_s
    rollout = replace(rollout, state=State(Phase.SHADOW), ledger=rollout.evidence, clock_s=limit_s)
    judged = judge(rollout.plan, rollout.evidence, shadow=True)
    held = Verdict(Outcome.HOLD, (Reason(code, "held back"), *judged.reasons))
    after = advance(rollout.plan, rollout.state, held, limit_s)
    assert after.phase is Phase.PAUSED
    rollout = from_json(to_json(rollout.moved(after, held, 1e9 + limit_s)))
    assert [each.same for each in replay(rollout)] == [True]


def test_replay_finds_evidence_that_was_changed(bad: Rollout) -> None:
    values = to_json(bad)
    errors = values["events"][-1]["ledger"]["criteria"]["errors"]
    latency = values["events"][-1]["ledger"]["criteria"]["latency"]
    start = ledgers.tests_of(bad.plan)["errors"].worse.log_start.tolist()
    errors["worse"] = latency["worse"] = start
    assert [each.same for each in replay(from_json(values))] == [True] * (len(bad.events) - 1) + [False]


def test_explain_tells_the_numbers_and_the_reason(bad: Rollout) -> None:
    text = "\n".join(explain(bad))
    assert "digits: 1 → 2" in text
    assert "rolled back with probability at most 0.01" in text
    assert "because more bad events (errors) than stable: candidate" in text
    assert "outside of these: any version is rolled back once both together are bad beyond errors 25%" in text


def test_commands_are_in_the_story() -> None:
    rollout = new_rollout()
    rollout = rollout.moved(command(rollout.state, "abort", 3.0, by="the operator"), None, 1e9 + 3)
    assert [event.outcome for event in rollout.events] == ["command"]
    assert "abort was requested by the operator" in "\n".join(explain(rollout))
    assert [each.same for each in replay(rollout)] == [True]


@pytest.mark.parametrize(
    ("state", "split"),
    [
        (State(Phase.LOADING), Split(1, 2, 0.0, 0.0, "digits-2")),
        (State(Phase.SHADOW), Split(1, 2, 0.0, 0.5, "digits-2")),
        (State(Phase.CANARY, step=1), Split(1, 2, 0.5, 0.0, "digits-2")),
        (State(Phase.PROMOTING), Split(1, 2, 1.0, 0.0, "digits-2")),
        (State(Phase.PROMOTED), Split(2)),
        (State(Phase.ROLLING_BACK, step=1), Split(1, 2, 0.0, 0.0, "digits-2")),
        (State(Phase.ROLLED_BACK), Split(1)),
    ],
)
def test_traffic_follows_the_state(state: State, split: Split) -> None:
    assert replace(new_rollout(), state=state).split() == split


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "not a stored rollout of format 1"),
        ({"state": {"phase": "flying"}}, "no field"),
        ({"id": "../../etc"}, "id is"),
        ({"plan": {"alpha": 7}}, "the stored plan is not valid"),
        ({"clock_s": "soon"}, "wrong value"),
        ({"stable": None}, "wrong value"),
        ({"candidate": 2**63}, "9223372036854775808 is not a version"),
        ({"stable": -1}, "-1 is not a version"),
        ({"events": [{}]}, "no field"),
    ],
)
def test_values_that_are_no_rollout_are_refused(change: dict[str, Any], message: str, good: Rollout) -> None:
    with pytest.raises(InvalidInput, match=message):
        from_json(to_json(good) | change)


def test_a_ledger_of_another_shape_is_refused(good: Rollout) -> None:
    values = json.loads(json.dumps(to_json(good)))
    values["ledger"]["criteria"]["errors"]["worse"].pop()
    with pytest.raises(InvalidInput, match="numbers of shape"):
        from_json(values)
    with pytest.raises(InvalidInput, match="not a stored rollout"):
        from_json([1, 2])


@pytest.mark.parametrize(
    ("choice", "ends"), [("pause", None), ("rollback", "rolled back"), ("promote", "promoted")]
)
def test_explain_says_where_the_bounds_do_not_hold(choice: str, ends: str | None) -> None:
    plan = Plan.model_validate({"on_inconclusive": choice})
    told = "\n".join(explain(replace(new_rollout(), plan=plan)))
    assert (f"any version is {ends} where the evidence has not sufficed" in told) == (ends is not None)


def test_small_shares_are_not_told_as_none() -> None:
    plan = Plan.model_validate(
        {"canary": [{"weight": 0.001}], "criteria": {"errors": {"max_overall_rate": 0.005, "margin": 0.001}}}
    )
    rollout = replace(new_rollout(), plan=plan, state=State(Phase.CANARY))
    told = "\n".join(explain(rollout))
    assert "canary step 1 of 1 (0.1%)" in told
    assert "bad beyond errors 0.5%" in told
    reasons = judge(plan, rollout.evidence, shadow=False).reasons
    assert any("by more than 0.1%, or bad in less than 0.1% (errors)" in each.text for each in reasons)

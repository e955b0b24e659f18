"""Feedback on images that both versions named: McNemar's test, from a caller's label to the verdict."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import bdtrc

from serving.rollout import evidence
from serving.rollout import ledger as ledgers
from serving.rollout.evidence import BoolArray
from serving.rollout.explain import explain, replay
from serving.rollout.judge import alphas, judge, signals
from serving.rollout.ledger import Arms, Interval, Ledger, Pairs
from serving.rollout.machine import Phase
from serving.rollout.observation import to_intervals
from serving.rollout.plan import Plan
from serving.rollout.verdict import Outcome
from tests.rollout.replicas import FAST, PICTURES, Scene, VersionedReplica, scene_over
from tests.rollout.stored import new_rollout

LOOSE = Plan.model_validate({"alpha": 0.5})
PNG = {"content-type": "image/png"}


def alarmed(candidate_only: float, stable_only: float, runs: int, intervals: int, seed: int) -> BoolArray:
    """Which of many rollouts would ever have been rolled back; feedback comes in batches of any size."""
    random = np.random.default_rng(seed)
    tests = ledgers.tests_of(LOOSE)
    ledger = ledgers.empty(tests, (), (runs,))
    ever = np.zeros(runs, dtype=np.bool_)
    for _ in range(intervals):
        n = random.poisson(random.choice([0, 2, 100], runs))
        candidate = random.binomial(n, candidate_only)
        stable = random.binomial(n - candidate, stable_only / (1.0 - candidate_only))
        pairs = {"accuracy": Pairs(n, candidate, stable)}
        ledger = ledgers.record(tests, ledger, Interval(pairs=pairs))
        ever |= signals(LOOSE, ledger, shadow=False).criteria["accuracy"].worse
    return ever


def test_false_alarms_of_feedback_are_within_its_part_of_alpha() -> None:
    runs, level = 3000, alphas(LOOSE)["accuracy"]
    false = int(alarmed(0.05, 0.05, runs, 150, seed=31).sum())
    assert false > 0, "the level is not far from being used"
    assert bdtrc(false - 1, runs, level) > 1e-5, f"{false} of {runs} at a level of {level:.3f}"


def test_a_version_that_is_wrong_twice_as_often_is_caught_by_feedback() -> None:
    assert alarmed(0.1, 0.05, 300, 100, seed=32).mean() >= 0.99


def test_a_batch_of_feedback_counts_whole() -> None:
    tests = ledgers.tests_of(Plan())
    batch = Interval(pairs={"accuracy": Pairs(500, 60, 10)})
    verdict = judge(Plan(), ledgers.record(tests, ledgers.empty(tests), batch), shadow=True)
    assert (verdict.outcome, verdict.reason.code) == (Outcome.FAIL, "accuracy.worse")
    assert "of the copies only the candidate 60, only stable 10" in verdict.reason.text


def test_each_answer_is_evidence_once() -> None:
    rollout = new_rollout()
    counts = {
        "labelled/1": 9.0,
        "wrong/1": 5.0,
        "judged/1/0.1": 3.0,
        "judged-wrong/1/0.1": 1.0,
        "judged/1/0.5": 2.0,
        "labelled/2": 7.0,
        "wrong/2": 4.0,
        "judged/2/0.1": 1.0,
        "judged-wrong/2/0.1": 1.0,
        "judged/2/0.5": 2.0,
        "pairs/2": 6.0,
        "candidate-wrong/2": 1.0,
        "stable-wrong/2": 2.0,
        "both-wrong/2": 2.0,
    }
    _, intervals = to_intervals(rollout, rollout.evidence, counts)
    assert [each.pairs.get("accuracy") for each in intervals] == [Pairs(6.0, 1.0, 2.0), None, None]
    assert [each.arms.get("accuracy") for each in intervals] == [
        None,
        Arms(candidate_n=1.0, candidate_bad=1.0, stable_n=3.0, stable_bad=1.0),
        Arms(candidate_n=2.0, candidate_bad=0.0, stable_n=2.0, stable_bad=0.0),
    ]


def test_images_that_grew_harder_between_two_weights_are_no_fault_of_the_candidate() -> None:
    """All labels of a day come at once; in its second half both versions are wrong five times as often."""
    rollout = new_rollout()
    counts = {
        "judged/1/0.1": 1800.0,
        "judged-wrong/1/0.1": 36.0,
        "judged/2/0.1": 200.0,
        "judged-wrong/2/0.1": 4.0,
        **{f"judged/{version}/0.5": 1000.0 for version in (1, 2)},
        **{f"judged-wrong/{version}/0.5": 100.0 for version in (1, 2)},
    }
    ledger, intervals = to_intervals(rollout, rollout.evidence, counts)
    for interval in intervals:
        ledger = ledgers.record(ledgers.tests_of(rollout.plan), ledger, interval)
    codes = {each.code for each in judge(rollout.plan, ledger, shadow=False).reasons}
    assert not codes & {"accuracy.worse", "accuracy.suspicious"}


def told_one_by_one(wrong: Callable[[int, float], float], labels: int, seed: int) -> Ledger:
    """What a day brings on which labels come one at a time, by turns on answers of two weights.

    `wrong` is how often a version's answers of a weight are.
    """
    rollout, random = new_rollout(), np.random.default_rng(seed)
    tests = ledgers.tests_of(rollout.plan)
    ledger = rollout.evidence
    for turn in range(labels):
        weight = (0.1, 0.5)[turn % 2]
        version = 2 if random.random() < weight else 1
        counts = {f"judged/{version}/{weight}": 1.0}
        if random.random() < wrong(version, weight):
            counts[f"judged-wrong/{version}/{weight}"] = 1.0
        ledger, intervals = to_intervals(rollout, ledger, counts)
        for interval in intervals:
            ledger = ledgers.record(tests, ledger, interval)
    return ledger


def test_labels_that_come_one_by_one_show_a_version_that_is_always_wrong() -> None:
    ledger = told_one_by_one(lambda version, _: {1: 0.02, 2: 1.0}[version], 120, seed=33)
    assert judge(Plan(), ledger, shadow=False).reason.code == "accuracy.worse"


def test_labels_that_come_one_by_one_are_held_apart_by_weight() -> None:
    ledger = told_one_by_one(lambda _, weight: {0.1: 0.02, 0.5: 0.4}[weight], 4000, seed=34)
    assert float(evidence.log_sum_exp(ledger.criteria["accuracy"].worse)) < 2.0
    assert sum(float(counts.max()) > 0.0 for counts in ledger.waiting.values()) <= 2
    assert set(ledger.waiting) >= {"accuracy/0.1", "accuracy/0.5"}


async def tell_the_truth(scene: Scene) -> None:
    """Asks for each picture in turn, and tells twenty at a time what they really were."""
    while not scene.rollout.finished:
        told = []
        for index in [*range(10)] * 2:
            answer = await scene.client.post(
                "/v1/models/digits:classify", content=PICTURES[index], headers=PNG
            )
            id_ = answer.json()["results"][0]["prediction_id"]
            told.append({"prediction_id": id_, "label": f"class-{index}"})
        answer = await scene.client.post("/v1/feedback", json={"feedback": told})
        assert {each["status"] for each in answer.json()["results"]} == {"accepted"}


@pytest.mark.parametrize("wrong", [1, 2])
async def test_labels_of_callers_judge_both_versions_in_the_shadow(tmp_path: Path, wrong: int) -> None:
    """One of the versions takes threes for fours and fours for threes; agreement alone cannot say which."""
    replica = VersionedReplica(answers={wrong: lambda index: {3: 4, 4: 3}.get(index, index)})
    lenient = {"share": 1.0, "min_agreement": 0.05, "min_class_agreement": 0.01, "min_samples": 400}
    plan: dict[str, Any] = FAST | {
        "shadow": FAST["shadow"] | lenient,
        "criteria": FAST["criteria"] | {"accuracy": {"margin": 0.5}},
    }
    async with scene_over(tmp_path, replica, callers=1) as scene:
        scene.begin(plan)
        await asyncio.wait_for(tell_the_truth(scene), 60)
        rollout = scene.rollout
    ledger = rollout.evidence.criteria["accuracy"]
    assert all(each.same for each in replay(rollout))
    if wrong == 1:
        assert rollout.state.phase is Phase.PROMOTED, rollout.state.reason
        assert float(ledger.stable_only) > float(ledger.candidate_only) == 0.0
        return
    assert (rollout.state.phase, rollout.state.reason.code) == (Phase.ROLLED_BACK, "accuracy.worse")
    assert rollout.events[-2].before.phase is Phase.SHADOW
    assert float(ledger.candidate_only) > float(ledger.stable_only) == 0.0
    assert any("of the copies only the candidate" in line for line in explain(rollout))

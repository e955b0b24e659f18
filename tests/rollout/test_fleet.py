"""Which versions the replicas are to hold in each phase, and what they are told to load."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serving.backends.tfserving import VersionStatus
from serving.rollout.fleet import Seen, holdings, replicas_verdict
from serving.rollout.machine import Phase, State, advance, command
from serving.rollout.plan import Step
from serving.rollout.record import Rollout
from serving.rollout.verdict import Outcome
from tests.rollout.replicas import VersionedReplica
from tests.rollout.stored import new_rollout
from tests.support.fake_replica import running, until
from tests.support.processes import started


def replicas(*holding: set[int], failed: frozenset[int] = frozenset()) -> list[Seen]:
    return [
        Seen(
            f"replica-{index}",
            True,
            {version: VersionStatus("AVAILABLE") for version in versions}
            | {version: VersionStatus("END", "damaged") for version in failed},
        )
        for index, versions in enumerate(holding)
    ]


def in_phase(phase: Phase, **plan: Any) -> Rollout:
    rollout = new_rollout()
    return replace(rollout, state=State(phase), plan=rollout.plan.model_copy(update=plan))


@pytest.mark.parametrize(
    ("phase", "spent_s", "held"),
    [
        (Phase.PENDING, 0.0, {1}),
        (Phase.LOADING, 0.0, {1, 2}),
        (Phase.CANARY, 0.0, {1, 2}),
        (Phase.PROMOTING, 1.0, {1, 2}),
        (Phase.PROMOTING, 60.0, {2}),
        (Phase.PROMOTED, 0.0, {2}),
        (Phase.ROLLING_BACK, 1.0, {1, 2}),
        (Phase.ROLLING_BACK, 60.0, {1}),
        (Phase.ROLLED_BACK, 0.0, {1}),
    ],
)
def test_the_order_of_versions_beside_each_other(phase: Phase, spent_s: float, held: set[int]) -> None:
    seen = replicas({1, 2}, {1, 2})
    assert holdings(in_phase(phase), seen, spent_s) == dict.fromkeys(
        ("replica-0", "replica-1"), frozenset(held)
    )


def test_no_replica_lets_a_version_go_before_it_has_the_other() -> None:
    seen = replicas({1, 2}, {1})
    assert holdings(in_phase(Phase.PROMOTING), seen, 60.0) == {
        "replica-0": frozenset({2}),
        "replica-1": frozenset({1, 2}),
    }


def test_a_rollback_loads_nothing() -> None:
    seen = replicas({1, 2}, {1})
    assert holdings(in_phase(Phase.ROLLING_BACK), seen, 0.0) == {
        "replica-0": frozenset({1, 2}),
        "replica-1": frozenset({1}),
    }


def test_memory_tight_fleets_swap_one_replica_at_a_time() -> None:
    def held(phase: Phase, *having: set[int]) -> list[set[int]]:
        found = holdings(in_phase(phase, max_unavailable=1), replicas(*having), 60.0)
        return [set(found[f"replica-{index}"]) for index in range(len(having))]

    assert held(Phase.CANARY, {1}, {1}, {1}) == [{2}, {1}, {1}]
    assert held(Phase.PROMOTING, {2}, {1}, {1}) == [{2}, {2}, {1}]
    assert held(Phase.PROMOTING, {2}, set(), {1}) == [{2}, {2}, {1}], "one is under way"
    assert held(Phase.PROMOTING, {2}, {2}, {1}) == [{2}, {2}, {2}]
    assert held(Phase.ROLLING_BACK, {2}, {1}, {1}) == [{1}, {1}, {1}]
    alone = replicas_verdict(in_phase(Phase.PENDING, max_unavailable=1), replicas({1}))
    assert alone is not None
    assert alone.outcome is Outcome.FAIL


def test_the_replica_that_tries_a_candidate_keeps_it_whichever_others_come() -> None:
    canary = in_phase(Phase.CANARY, max_unavailable=1)
    new, having, left = replicas({1}, {2}, {1})
    left = replace(left, states={**left.states, 2: VersionStatus("END")})
    for fleet in ([new, having], [new, having, left]):
        held = holdings(canary, fleet, 60.0)
        assert [address for address, versions in held.items() if versions == {2}] == [having.address]
        verdict = replicas_verdict(canary, fleet)
        assert verdict is None, "one that had it for a moment has not failed"
    gone = replicas_verdict(canary, [new, left])
    assert gone is not None
    assert (gone.outcome, gone.reason.code) == (Outcome.FAIL, "replicas.cannot-load")


@pytest.mark.parametrize(("most", "warned"), [(None, False), (1, True), (2, False)])
def test_a_weight_that_the_few_which_try_a_candidate_could_hardly_bear_is_told(
    most: int | None, warned: bool
) -> None:
    plan = {"max_unavailable": most, "canary": (Step(weight=0.05), Step(weight=0.4))}
    verdict = replicas_verdict(in_phase(Phase.PENDING, **plan), replicas({1}, {1}, {1}, {1}, {1}))
    assert verdict is not None
    assert verdict.outcome is Outcome.PASSED
    text = "a weight of 40% is more than an even share of the 1 of 5 replicas that try the candidate"
    assert (text in verdict.reason.text) == warned


def test_replicas_that_cannot_load_fail_the_rollout_when_too_few_are_left() -> None:
    loading = replace(in_phase(Phase.LOADING), clock_s=10.0)
    some = [*replicas({1, 2}), *replicas({1}, failed=frozenset({2}))]
    enough, too_few = replicas_verdict(loading, some), replicas_verdict(loading, some[1:])
    assert enough is not None
    assert enough.outcome is Outcome.PASSED
    assert too_few is not None
    assert (too_few.outcome, too_few.reason.code) == (Outcome.FAIL, "replicas.cannot-load")
    assert "damaged" in too_few.reason.text


@pytest.mark.parametrize("before", [Phase.PENDING, Phase.LOADING])
@pytest.mark.parametrize("error", ["", "out of memory"])
def test_a_second_try_does_not_fail_by_what_is_left_of_the_first(before: Phase, error: str) -> None:
    left = [Seen("replica", True, {1: VersionStatus("AVAILABLE"), 2: VersionStatus("END", error)})]
    soon = replace(in_phase(before), clock_s=1.0)
    paused = replace(soon, state=command(soon.state, "pause", 1.0, by="a test"))
    for each in (soon, paused):
        verdict = replicas_verdict(each, left)
        assert verdict is not None
        assert verdict.outcome is not Outcome.FAIL
    later = replicas_verdict(replace(soon, clock_s=10.0), left)
    assert later is not None
    assert (later.outcome is Outcome.FAIL) == (before is Phase.LOADING and bool(error))


@pytest.mark.parametrize("state", ["AVAILABLE", "END"])
def test_what_a_replica_that_cannot_be_reached_last_said_counts_for_nothing(state: str) -> None:
    there = {1: VersionStatus("AVAILABLE"), 2: VersionStatus("AVAILABLE")}
    gone = replace(replicas({1, 2})[0], reachable=False, states=there | {2: VersionStatus(state, "")})
    alone = replicas_verdict(in_phase(Phase.CANARY), [gone])
    assert alone is not None
    assert (alone.outcome, alone.reason.code) == (Outcome.INCONCLUSIVE, "replicas.gone")
    beside = replicas_verdict(in_phase(Phase.CANARY), [gone, *replicas({1, 2})])
    assert beside is None


def test_a_rollout_to_the_version_that_serves_ends_at_once() -> None:
    seen = replicas({1})
    rollout = replace(in_phase(Phase.PENDING), candidate=1)
    verdict = replicas_verdict(rollout, seen)
    assert verdict is not None
    assert (verdict.outcome, verdict.reason.code) == (Outcome.FAIL, "replicas.serves-already")
    back = replace(rollout, state=advance(rollout.plan, rollout.state, verdict, 1.0))
    settled = replicas_verdict(back, seen)
    assert settled is not None
    assert settled.outcome is Outcome.PASSED


class ToldWhere(VersionedReplica):
    """Notes where it is told to find a model."""

    base_path = ""

    async def reload(self, request: Any) -> Any:
        self.base_path = request.config.model_config_list.config[0].base_path
        return await super().reload(request)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("folder", ["gs://models", "/srv/models"])
async def test_replicas_are_told_the_folder_or_the_bucket_that_the_setting_names(
    folder: str, workers: int, tmp_path: Path
) -> None:
    replica = ToldWhere()
    async with running(replica):
        arguments = ["gateway", f"--replica={replica.address}", "--model=digits", f"--workers={workers}"]
        environment = {"SLUICE_REPLICA_MODELS_DIR": folder, "SLUICE_ROLLOUT_STORE": str(tmp_path / "store")}
        async with started(arguments, environment):
            await until(lambda: bool(replica.base_path))
    assert replica.base_path == f"{folder}/digits"

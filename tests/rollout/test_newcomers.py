"""Versions that appear in the folder: they wait for somebody, or come in by a rollout of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from serving.errors import NotFound
from serving.rollout.machine import Phase, State
from serving.rollout.newcomers import Newcomers
from serving.rollout.plan import Plan
from serving.rollout.record import Rollout
from serving.rollout.store import FileStore
from tests.rollout.replicas import FAST, VersionedReplica, scene_over
from tests.rollout.stored import new_rollout
from tests.support.fake_replica import until

BY_ITSELF = Plan(on_new_version="rollout")


def ended(store: FileStore, phase: Phase) -> None:
    running = store.load("digits")
    assert running is not None
    store.save(replace(running, state=State(phase)))


def test_each_newer_version_is_tried_once(tmp_path: Path) -> None:
    store, there = FileStore(tmp_path), tmp_path / "models" / "digits"
    store.note_models(str(there.parent))
    (there / "1").mkdir(parents=True)
    newcomers = Newcomers(store, BY_ITSELF)
    assert newcomers.look("digits", 1e9) is None, "nobody has served it yet"
    store.pin("digits", 1)
    assert newcomers.look("digits", 1e9) is None
    (there / "2").mkdir()
    first = newcomers.look("digits", 1e9)
    assert first is not None
    assert (first.stable, first.candidate, first.plan) == (1, 2, BY_ITSELF)
    (there / "3").mkdir()
    assert newcomers.look("digits", 1e9) is None, "one after the other"
    ended(store, Phase.ROLLED_BACK)
    second = newcomers.look("digits", 2e9)
    assert second is not None
    assert (second.stable, second.candidate) == (1, 3)
    ended(store, Phase.ROLLED_BACK)
    assert newcomers.look("digits", 3e9) is None, "what was rolled back is not tried again"
    (there / "4").mkdir()
    third = newcomers.look("digits", 4e9)
    assert third is not None
    ended(store, Phase.PROMOTED)
    (there / "4").rmdir()
    assert newcomers.look("digits", 5e9) is None, "nothing goes back by itself"


class Histories(FileStore):
    """Counts how often a history is read."""

    read = 0

    def history(self, model: str) -> list[Rollout]:
        self.read += 1
        return super().history(model)


@pytest.mark.parametrize("plan", [BY_ITSELF, Plan()], ids=["by itself", "it waits"])
def test_the_history_is_read_when_there_is_something_new(tmp_path: Path, plan: Plan) -> None:
    """It may be long, and a version that was rolled back stays in the folder."""
    store, there = Histories(tmp_path), tmp_path / "models" / "digits"
    store.note_models(str(there.parent))
    store.pin("digits", 1)
    for version in ("1", "2"):
        (there / version).mkdir(parents=True)
    store.save(replace(new_rollout(), state=State(Phase.ROLLED_BACK)))
    newcomers = Newcomers(store, plan)
    assert [newcomers.look("digits", 1e9) for _ in range(3)] == [None] * 3
    assert store.read == 1
    (there / "3").mkdir()
    found = newcomers.look("digits", 1e9)
    assert (found is not None, store.read) == (plan is BY_ITSELF, 2)


def test_a_version_that_waits_is_told_of_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, names = FileStore(tmp_path), ("digits", "digits copy")
    store.note_models(str(tmp_path / "models"))
    newcomers = Newcomers(store, Plan())
    for name in names:
        for version in ("1", "2"):
            (tmp_path / "models" / name / version).mkdir(parents=True)
        store.pin(name, 1)
        assert [newcomers.look(name, 1e9) for _ in range(3)] == [None, None, None]
    logged = capsys.readouterr().out
    assert logged.count("sluice rollout start digits --to 2") == 1
    assert logged.count("sluice rollout start 'digits copy' --to 2") == 1
    assert [store.load(name) for name in names] == [None, None]


async def test_a_version_that_appears_comes_in_by_itself(tmp_path: Path) -> None:
    models, plan = tmp_path / "models", tmp_path / "plan.yaml"
    (models / "digits" / "1").mkdir(parents=True)
    plan.write_text(yaml.safe_dump(FAST | {"on_new_version": "rollout"}))
    replica = VersionedReplica()
    async with scene_over(tmp_path / "store", replica, models_dir=models, rollout_plan=plan) as scene:
        assert scene.store.load("digits") is None
        (models / "digits" / "2").mkdir()
        await until(lambda: scene.store.load("digits") is not None)
        rollout = await scene.until_finished()
        assert (rollout.stable, rollout.candidate, rollout.state.phase) == (1, 2, Phase.PROMOTED)
        assert {status for status, _ in scene.answered} == {200}
        with pytest.raises(NotFound, match="has no version 7 to be loaded; there are: 1, 2"):
            scene.begin(FAST, to=7)
        # As started by somebody who cannot see the folder of models.
        scene.store.save(Rollout("digits-7", "digits", 2, 7, Plan.model_validate(FAST), 1e9))
        missing = await scene.until_finished()
        assert (missing.state.phase, missing.state.reason.code) == (
            Phase.ROLLED_BACK,
            "replicas.no-such-version",
        )
        assert "there are: 1, 2" in missing.state.reason.text
    assert all(7 not in config for config in replica.configs)

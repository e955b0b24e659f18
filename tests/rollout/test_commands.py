from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serving.commands.rollout import rollout
from serving.rollout.store import FileStore
from tests.rollout.stored import new_rollout

QUICK = """\
shadow: {min_time_s: 20, min_samples: 100}
canary:
  - {weight: 0.1, min_time_s: 30}
  - {weight: 0.5, min_time_s: 30}
"""


@pytest.fixture
def plan(tmp_path: Path) -> str:
    path = tmp_path / "plan.yaml"
    path.write_text(QUICK)
    return str(path)


def test_simulate_prints_every_rule(plan: str) -> None:
    result = CliRunner().invoke(
        rollout, ["simulate", "--plan", plan, "--runs", "20", "--candidate-error", "0.1"]
    )
    assert result.exit_code == 0, result.output
    for text in ("this plan", "Argo Rollouts", "Flagger", "Wald's SPRT", "as good as stable"):
        assert text in result.output


def test_simulate_prints_json(plan: str) -> None:
    arguments = ["simulate", "--plan", plan, "--runs", "20", "--rps", "100", "--json"]
    result = CliRunner().invoke(rollout, arguments)
    report = json.loads(result.stdout)
    assert report["runs"] == 20
    assert report["traffic"]["rps"] == 100
    assert report["rows"][0]["promoted"]["lower"] <= report["rows"][0]["promoted"]["share"]


def test_check_prints_the_whole_plan(plan: str) -> None:
    result = CliRunner().invoke(rollout, ["check", plan, "--json"])
    values = json.loads(result.stdout)
    assert values["canary"][0] == {"weight": 0.1, "min_time_s": 30.0, "min_requests": 50}
    assert values["alpha"] == 0.01


@pytest.mark.parametrize(
    ("where", "says"),
    [
        (
            "--store=/nowhere",
            "error: /nowhere is not a folder of rollouts; pass the one that a gateway has as --rollouts",
        ),
        (
            "--gateway=localhost:8080",
            'error: "localhost:8080" is not the address of a gateway; it must begin with http',
        ),
        ("--gateway=http://127.0.0.1:9", "error: no gateway answers at http://127.0.0.1:9: "),
    ],
)
def test_places_where_no_rollouts_are(where: str, says: str) -> None:
    result = CliRunner().invoke(rollout, ["status", where])
    assert (result.exit_code, result.stderr[: len(says)]) == (2, says)


def test_a_folder_of_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    result = CliRunner().invoke(rollout, ["status", f"--store={tmp_path}"])
    assert (result.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert f"{tmp_path} is not a folder of rollouts" in result.stderr


@pytest.mark.parametrize("command", ["check", "simulate"])
def test_faults_in_a_plan_are_told_without_a_stack_trace(tmp_path: Path, command: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("alpha: 0.01\nshadow: {share: 2}\n")
    arguments = [command, str(path)] if command == "check" else [command, "--plan", str(path)]
    result = CliRunner().invoke(rollout, arguments)
    assert result.exit_code == 2
    assert f"error: {path}:2: shadow.share: " in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--rps", "0"], "error: rps is 0"), (["--incidents", "nan"], "error: incidents: a rate")],
)
def test_traffic_that_cannot_be_is_told(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(rollout, ["simulate", *arguments])
    assert result.exit_code == 2
    assert says in result.stderr


def test_status_tells_of_records_that_cannot_be_read_beside_those_that_can(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    for model in ("digits", "flowers"):
        store.save(new_rollout(f"{model}-2", model))
    path = tmp_path / "digits.json"
    path.write_text(path.read_text().replace('"alpha": 0.01', '"alpha": 7'))
    for arguments in ([], ["digits"]):
        result = CliRunner().invoke(rollout, ["status", *arguments, f"--store={tmp_path}"])
        assert result.exit_code == 1
        assert 'what is stored of model "digits" cannot be read' in result.output
        assert "plan.alpha: Input should be less than 1" in " ".join(result.output.split())
        assert ("flowers" in result.output) == (not arguments)

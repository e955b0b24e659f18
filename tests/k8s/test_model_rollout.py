"""The custom resource takes the plans that the program takes, and refuses those that it refuses."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from k8s.tools import check, crd, manifests, schemas
from serving.rollout.plan import Plan


def rollout(plan: Any) -> dict[str, Any]:
    return {
        "apiVersion": f"{crd.GROUP}/{crd.VERSION}",
        "kind": "ModelRollout",
        "metadata": {"name": "digits-2", "namespace": "sluice"},
        "spec": {"model": "digits", "version": 2, "plan": plan},
    }


def faults_of(document: dict[str, Any]) -> list[str]:
    return [fault for fault in schemas.faults([crd.definition(), document]) if "ModelRollout/" in fault]


def test_the_definition_itself_is_one_that_kubernetes_takes() -> None:
    assert list(schemas.faults([crd.definition()])) == []


@pytest.mark.parametrize("plan", [Plan(), Plan(webhook="https://hooks.example/a", max_unavailable=1)])
def test_a_whole_plan_is_taken(plan: Plan) -> None:
    assert faults_of(rollout(json.loads(plan.model_dump_json()))) == []


# Each is one change to a plan that the program refuses: a path, and the value there.
REFUSED: dict[str, tuple[tuple[str | int, ...], Any]] = {
    "alpha is not below 1": (("alpha",), 1.0),
    "a share above 1": (("shadow", "share"), 1.5),
    "an unknown field": (("shadow", "ratio"), 0.5),
    "an unknown word": (("on_inconclusive",), "wait"),
    "a step of no weight": (("canary", 0, "weight"), 0.0),
    "weights that fall": (("canary", 1, "weight"), 0.9),
    "the same weight twice": (("canary", 1, "weight"), 0.01),
    "no step at all": (("canary",), []),
    "text for a number": (("limits", "load_s"), "soon"),
    "a time that is none": (("quiet_hours",), [{"start": "25:00", "end": "06:00"}]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_program_and_definition_refuse_alike(name: str) -> None:
    path, value = REFUSED[name]
    plan = json.loads(Plan().model_dump_json())
    inner = plan
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    with pytest.raises(ValidationError):
        Plan.model_validate(copy.deepcopy(plan))
    found = faults_of(rollout(plan))
    assert found
    assert ".".join(map(str, path[: 2 if "weight" not in path else 1])).split(".", maxsplit=1)[0] in found[0]


def test_model_and_version_are_required() -> None:
    document = rollout({})
    del document["spec"]["version"]
    assert faults_of(document) == ["ModelRollout/digits-2: spec: 'version' is a required property"]


def test_the_demo_is_a_plan_that_the_program_reads(tmp_path: Path) -> None:
    documents = manifests.build(check.folder_of("production with a rollout", check.K8S, tmp_path))
    (demo,) = manifests.of_kind(documents, "ModelRollout")
    plan = Plan.model_validate(demo["spec"]["plan"])
    assert [step.weight for step in plan.canary] == [0.05, 0.25, 0.5]

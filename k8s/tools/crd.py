"""Write the custom resource definition `ModelRollout`, with the plan's fields as the program reads them.

    python -m k8s.tools.crd            writes k8s/crd/modelrollouts.yaml
    python -m k8s.tools.crd --check    exits 1 if that file is not what would be written

The API server then refuses a plan that the controller would refuse, as far as a structural schema can say
it; defaults are left out, since the program fills them in, and a stored plan stays as its author wrote it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from serving.rollout.machine import Phase
from serving.rollout.plan import Plan

TARGET = Path(__file__).resolve().parents[1] / "crd" / "modelrollouts.yaml"
GROUP = "sluice.dev"
VERSION = "v1alpha1"
HEADER = "# Written by `python -m k8s.tools.crd` from serving/rollout/plan.py; edit these, not this.\n"

_KEPT = ("type", "format", "enum", "pattern", "minLength", "maxLength", "minItems", "maxItems")
_MAX_TEXT = 253  # without a bound the API server reckons a rule's cost for texts of a megabyte


def structural(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON schema of pydantic's as a structural schema of Kubernetes' (OpenAPI 3.0).

    References are written out, `null` becomes `nullable`, exclusive bounds become flags, and what is
    not allowed there (`title`, `additionalProperties` beside `properties`, defaults) is left out.
    """
    if "$ref" in schema:
        return structural(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        (only,) = (each for each in schema["anyOf"] if each.get("type") != "null")
        return {**structural(only, definitions), "nullable": True}
    found = {key: schema[key] for key in _KEPT if key in schema} | _bounds(schema)
    kind = found.get("type")
    if kind == "array":
        found["items"] = structural(schema["items"], definitions)
        found.setdefault("maxItems", 7 if "enum" in found["items"] else 50)
    elif kind == "integer":
        found["format"] = "int64"
    elif kind == "string" and "enum" not in found:
        found.setdefault("maxLength", _MAX_TEXT)
    elif kind == "object":
        if "description" in schema:
            found["description"] = schema["description"].splitlines()[0]
        if "required" in schema:
            found["required"] = schema["required"]
        found["properties"] = {
            name: structural(each, definitions) for name, each in schema["properties"].items()
        }
    return found


def _bounds(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Bounds of a number; OpenAPI 3.0 says by a flag that one is exclusive."""
    found: dict[str, Any] = {}
    for bound in ("minimum", "maximum"):
        exclusive = "exclusive" + bound.capitalize()
        if exclusive in schema:
            found |= {bound: schema[exclusive], exclusive: True}
        elif bound in schema:
            found[bound] = schema[bound]
    return found


def plan_schema() -> dict[str, Any]:
    """The plan's structural schema, with the rules that a schema alone cannot say."""
    schema = Plan.model_json_schema()
    found = structural(schema, schema.get("$defs", {}))
    found["properties"]["canary"]["x-kubernetes-validations"] = [
        {
            "rule": "self.all(a, self.filter(b, b.weight == a.weight).size() == 1)",
            "message": "two steps have the same weight; weights must grow",
        },
        {
            "rule": "self.map(step, step.weight).isSorted()",
            "message": "a step has less weight than the one before; weights must grow",
        },
    ]
    return found


def spec_schema() -> dict[str, Any]:
    """What one asks for."""
    return {
        "type": "object",
        "required": ["model", "version"],
        "properties": {
            "model": {
                "type": "string", "minLength": 1, "maxLength": _MAX_TEXT,
                "description": "The model, by its name in the model servers' configuration.",
            },
            "version": {
                "type": "integer", "format": "int64", "minimum": 1,
                "description": "The candidate: the version to let in.",
            },
            "command": {
                "type": "string", "enum": ["pause", "resume", "promote", "abort"],
                "description": "What a person wants done; the controller obeys it once and clears it.",
            },
            "plan": plan_schema(),
        },
        "x-kubernetes-validations": [
            {
                "rule": "self.model == oldSelf.model && self.version == oldSelf.version",
                "message": "model and version stay as they are; make another ModelRollout",
            }
        ],
    }  # fmt: skip


def status_schema() -> dict[str, Any]:
    """Where the rollout is. `state` is the controller's own record, which only it reads."""
    time = {"type": "string", "format": "date-time"}
    return {
        "type": "object",
        "properties": {
            "phase": {"type": "string", "enum": [phase.value for phase in Phase]},
            "step": {"type": "integer", "format": "int32", "minimum": 0},
            "weight": {"type": "number", "minimum": 0, "maximum": 1},
            "stableVersion": {"type": "integer", "format": "int64"},
            "reason": {"type": "string"},
            "observedGeneration": {"type": "integer", "format": "int64"},
            "enteredAt": time,
            "finishedAt": {**time, "nullable": True},
            "state": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
            "conditions": {
                "type": "array",
                "maxItems": 16,
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
                "items": {
                    "type": "object",
                    "required": ["type", "status", "lastTransitionTime", "reason"],
                    "properties": {
                        "type": {"type": "string", "maxLength": 316},
                        "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
                        "reason": {"type": "string", "maxLength": 1024},
                        "message": {"type": "string", "maxLength": 32768},
                        "lastTransitionTime": time,
                        "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
                    },
                },
            },
        },
    }


def _column(name: str, kind: str, path: str, priority: int = 0) -> dict[str, Any]:
    column: dict[str, Any] = {"name": name, "type": kind, "jsonPath": path}
    return {**column, "priority": priority} if priority else column


def definition() -> dict[str, Any]:
    """The whole CustomResourceDefinition."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"modelrollouts.{GROUP}", "labels": {"app.kubernetes.io/part-of": "sluice"}},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": "ModelRollout", "listKind": "ModelRolloutList", "plural": "modelrollouts",
                "singular": "modelrollout", "shortNames": ["mro"], "categories": ["sluice"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        _column("Model", "string", ".spec.model"),
                        _column("Version", "integer", ".spec.version"),
                        _column("Stable", "integer", ".status.stableVersion"),
                        _column("Phase", "string", ".status.phase"),
                        _column("Weight", "number", ".status.weight"),
                        _column("Reason", "string", ".status.reason", priority=1),
                        _column("Age", "date", ".metadata.creationTimestamp"),
                    ],
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "required": ["spec"],
                            "properties": {
                                "apiVersion": {"type": "string"},
                                "kind": {"type": "string"},
                                "metadata": {"type": "object"},
                                "spec": spec_schema(),
                                "status": status_schema(),
                            },
                        }
                    },
                }
            ],
        },
    }  # fmt: skip


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the hook's signature
        """Write everything out: Kubernetes' parser takes no anchors of ours on trust."""
        return True


def text() -> str:
    """The file's content."""
    return HEADER + yaml.dump(definition(), Dumper=_Dumper, sort_keys=False, width=110)


def main() -> None:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    if not parser.parse_args().check:
        TARGET.parent.mkdir(parents=True, exist_ok=True)
        TARGET.write_text(text())
    elif TARGET.read_text() != text():
        sys.exit("error: k8s/crd/modelrollouts.yaml is not what the plan says; run python -m k8s.tools.crd")


if __name__ == "__main__":
    main()

"""The operations guide names only the folders that there are, and what it says to do can be done."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from k8s.tools import check, manifests, schemas
from serving.commands import capacity

REPOSITORY = check.K8S.parent
GUIDE = (REPOSITORY / "docs/operations.md").read_text()
_BLOCK = re.compile(r"^[ ]*```\w*\n(.*?)^[ ]*```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")


def test_every_folder_and_file_is_there() -> None:
    paths = set(re.findall(r"\b(?:k8s|serving|tests|docs)/[\w./-]+\w", GUIDE))
    assert len(paths) >= 8
    for path in paths - {"k8s/overlays/mine", "k8s/overlays/large"}:  # what a reader makes
        assert (REPOSITORY / path).exists(), path
    for component in re.findall(r"`components/([\w-]+)`", GUIDE):
        assert (check.K8S / "components" / component).is_dir(), component


def test_the_oldest_kubernetes_that_is_promised_is_checked() -> None:
    assert f"a cluster of Kubernetes {schemas.KUBERNETES_VERSIONS[0]} or newer" in GUIDE


def test_every_component_is_told_of() -> None:
    table = GUIDE.partition("| component | adds |")[2].partition("\n\n")[0]
    told = set(_INLINE.findall(table))
    assert {each.name for each in (check.K8S / "components").iterdir()} <= told


def test_every_alert_has_a_section() -> None:
    documents = manifests.build(check.K8S / "overlays/production")
    sections = set(re.findall(r"^#+ (.+)$", GUIDE, re.MULTILINE))
    named: set[str] = set()
    for rules in manifests.of_kind(documents, "PrometheusRule"):
        for group in rules["spec"]["groups"]:
            for rule in group["rules"]:
                runbook = rule.get("annotations", {}).get("runbook", "")
                if "operations.md" in runbook:
                    named.add(runbook.partition('"')[2].rstrip('"'))
    assert named <= sections


def test_replicas_of_their_own_for_some_models_are_made_as_the_guide_says(tmp_path: Path) -> None:
    k8s = tmp_path / "k8s"
    shutil.copytree(check.K8S, k8s, ignore=shutil.ignore_patterns("tools", "__pycache__"))
    (given,) = [text for text in _BLOCK.findall(GUIDE) if "nameSuffix" in text]
    production = yaml.safe_load((k8s / "overlays/production/kustomization.yaml").read_text())
    production["components"].remove("../../components/rollouts-cluster")
    folders = {"mine": yaml.safe_dump(production), "large": given, "both": "resources: [../mine, ../large]"}
    for name, text in folders.items():
        (k8s / "overlays" / name).mkdir()
        (k8s / "overlays" / name / "kustomization.yaml").write_text(f"{text}\nnamespace: sluice\n")
    own = (k8s / "base/model-server/models.config").read_text().replace("digits", "letters")
    (k8s / "overlays/large/models.config").write_text(own)
    assert list(check.faults(str(k8s / "overlays/both"))) == []
    documents = manifests.build(k8s / "overlays/both")
    (policy,) = [
        each["spec"]["podSelector"]["matchLabels"].items()
        for each in manifests.of_kind(documents, "NetworkPolicy")
        if each["metadata"]["name"] == "model-server"
    ]
    labels = [
        each["spec"]["template"]["metadata"]["labels"].items()
        for each in manifests.of_kind(documents, "Deployment")
    ]
    assert sum(policy <= each for each in labels) == 2, "gateways may ask the replicas of both"
    text = (k8s / "overlays/large/kustomization.yaml").read_text()
    (k8s / "overlays/large/kustomization.yaml").write_text(text.replace("-server-large}", "-server}"))
    found = list(check.faults(str(k8s / "overlays/both")))
    assert (
        "Deployment/model-server-large: its pods are selected by PodDisruptionBudget/model-server and by "
        "PodDisruptionBudget/model-server-large"
    ) in found


def test_the_example_of_a_capacity_plan_is_what_is_printed() -> None:
    measured = capacity.Measured({1: 0.0021, 8: 0.003, 32: 0.0062, 128: 0.018})
    need = capacity.Need(
        images_per_s=100_000, p99_s=0.05, gateway_images_per_s=2000, replica_cost=1.2, gateway_cost=0.1
    )
    best = capacity.best(capacity.options(measured, need), need)
    assert best is not None
    for name, line in capacity.arithmetic(measured, need, best).items():
        assert f"{name + ':':14} {line}" in GUIDE


def fenced(language: str) -> list[str]:
    """The command lines of the blocks in a language, comments left out."""
    every = re.findall(r"^[ ]*```(\w*)\n(.*?)^[ ]*```", GUIDE, re.MULTILINE | re.DOTALL)
    blocks = [text for of, text in every if of == language]
    lines = (line.partition("  #")[0].strip() for block in blocks for line in block.splitlines())
    return [line for line in lines if line]


# Why a command is not run by the test below, by how it begins.
NOT_RUN = {
    "make manifests": "it is what test_manifests.py checks, and it installs packages",
    "python3 k8s/tools/pin_bases.py": "asks registries; test_images.py runs it with given digests",
    "docker build": "needs an engine; test_images.py holds the Dockerfile against what image_tree.py builds",
    "kubectl apply": "needs a cluster",
    "rm feedback.key": "the command before it needs a cluster",
    "kubectl label": "needs a cluster",
    "kubectl -n sluice": "needs a cluster; test_model_rollout.py holds objects against the API's rules",
    "curl": "needs a gateway; tests/end_to_end asks one",
    "sluice rollout start": "needs a cluster; tests/rollout runs it over a server that speaks its API",
    "sluice rollout watch": "needs a cluster; tests/rollout runs it over a server that speaks its API",
    "sluice rollout simulate": "takes a quarter of a minute; tests/rollout simulates shorter",
    "sluice plan-capacity --rate 5000 --measure": "needs a replica; test_capacity.py measures one",
}
COPIED = ("k8s", "docs", "serving/samples")


def test_every_command_is_run_here_or_is_told_why_not() -> None:
    run = set(fenced("bash"))
    for line in [*fenced(""), *fenced("bash")]:
        reasons = [why for beginning, why in NOT_RUN.items() if line.startswith(beginning)]
        is_output = re.match(r"[\w ]+: +", line)
        assert len(reasons) == 1 or line in run or is_output, f"{line!r} is neither run nor excused"
    for beginning in NOT_RUN:
        assert any(line.startswith(beginning) for line in [*fenced(""), *run]), f"{beginning!r} is not there"


def test_what_can_be_run_without_a_cluster_does_what_the_guide_says(tmp_path: Path) -> None:
    for part in COPIED:
        shutil.copytree(REPOSITORY / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / ".venv").symlink_to(sys.prefix)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    said = ""
    commands = [each for each in fenced("bash") if not each.startswith(tuple(NOT_RUN))]
    assert len(commands) >= 5
    for command in commands:
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**os.environ, "PATH": path},
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        said += done.stdout
    assert "kind: Deployment" in said
    assert "k8s/overlays/mine: ok" in said
    assert "22 x 1.2 + 73 x 0.1 = 33.70 an hour" in said

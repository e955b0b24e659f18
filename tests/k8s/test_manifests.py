"""The manifests pass their checks, and come to what they are for."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import pytest
import yaml

from k8s.tools import check, crd, manifests


@pytest.mark.parametrize("name", check.COMBINATIONS)
def test_each_combination_is_without_fault(name: str, tmp_path: Path) -> None:
    assert list(check.faults(name, scratch=tmp_path)) == []


def test_every_component_is_checked_somewhere() -> None:
    assert check.unused_components() == []


def test_the_definition_of_model_rollout_says_what_the_plan_says() -> None:
    assert crd.TARGET.read_text() == crd.text()


@pytest.mark.parametrize("name", ["GPUs, models from GCS", "GPUs, models from S3"])
def test_a_replica_may_reach_the_bucket_that_it_reads(name: str, tmp_path: Path) -> None:
    documents = manifests.build(check.folder_of(name, check.K8S, tmp_path))
    (replica,) = [
        each["spec"]["template"]["metadata"]["labels"]
        for each in manifests.of_kind(documents, "Deployment")
        if each["metadata"]["name"] == "model-server"
    ]
    policies = [
        each["spec"]
        for each in manifests.of_kind(documents, "NetworkPolicy")
        if each["spec"]["podSelector"].get("matchLabels", {}).items() <= replica.items()
    ]
    denied = [each for each in policies if "Egress" in each["policyTypes"] and "egress" not in each]
    assert denied, "where nothing is denied this test says nothing"
    to_anywhere = [rule for each in policies for rule in each.get("egress", ()) if "to" not in rule]
    assert {"port": 443} in [port for rule in to_anywhere for port in rule["ports"]]


def test_a_fleet_of_the_right_size_is_not_taken_away_at_once(tmp_path: Path) -> None:
    """The autoscaler's formula asks for two replicas where ten keep the queue short, and for sixteen then."""
    documents = manifests.build(check.folder_of("KEDA", check.K8S, tmp_path))
    (spec,) = [
        each["spec"]
        for each in manifests.of_kind(documents, "ScaledObject")
        if each["metadata"]["name"] == "model-server"
    ]
    target = float(spec["triggers"][0]["metadata"]["threshold"])
    assert math.ceil(10 * 0.005 / target) <= spec["minReplicaCount"]
    assert math.ceil(10 * 2.0 / target) > spec["maxReplicaCount"]
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleDown"]["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 300}]
    for policy in behavior["scaleUp"]["policies"]:
        assert policy["periodSeconds"] >= 180, "a replica has to come before the next one is asked for"


def test_a_proxy_of_the_gateway_api_lets_go_of_idle_connections_first() -> None:
    documents = manifests.build(check.K8S / "overlays/production")
    (timeout,) = [
        each["data"]["SLUICE_IDLE_TIMEOUT_S"]
        for each in manifests.of_kind(documents, "ConfigMap")
        if "SLUICE_IDLE_TIMEOUT_S" in each.get("data", {})
    ]
    assert float(timeout) > 3600, "Envoy's idle_timeout is an hour by default"


def test_every_image_of_ours_comes_from_the_registry_of_the_copied_overlay(tmp_path: Path) -> None:
    k8s = tmp_path / "k8s"
    shutil.copytree(check.K8S, k8s, ignore=shutil.ignore_patterns("tools", "__pycache__"))
    file = k8s / "overlays/production/kustomization.yaml"
    overlay = yaml.safe_load(file.read_text())
    overlay["components"] += ["../../components/training", "../../components/training-local"]
    file.write_text(yaml.safe_dump(overlay))
    images = {each.spec["image"] for each in manifests.containers(manifests.build(file.parent))}
    assert any("/training:" in each for each in images)
    assert [each for each in images if each.startswith("sluice/")] == []


@pytest.mark.parametrize(
    "components",
    [
        ("gpu", "rollouts-cluster", "monitoring", "store-s3", "training", "training-rollout"),
        ("gpu", "rollouts-cluster", "monitoring", "store-gcs"),
    ],
)
def test_components_work_where_nothing_is_denied(components: tuple[str, ...], tmp_path: Path) -> None:
    k8s = tmp_path / "k8s"
    shutil.copytree(check.K8S, k8s, ignore=shutil.ignore_patterns("tools", "__pycache__"))
    overlay = yaml.safe_load((k8s / "overlays/production/kustomization.yaml").read_text())
    overlay["components"] = [f"../../components/{each}" for each in components]
    overlay["patches"] = []
    (k8s / "overlays/own").mkdir()
    (k8s / "overlays/own/kustomization.yaml").write_text(yaml.safe_dump(overlay))
    found = [fault for fault in check.faults(str(k8s / "overlays/own")) if "NetworkPolicy" in fault]
    assert found == []


def test_the_loss_of_a_zone_is_not_that_of_all_gateways_or_replicas() -> None:
    for each in manifests.of_kind(manifests.build(check.K8S / "overlays/production"), "Deployment"):
        constraints = each["spec"]["template"]["spec"]["topologySpreadConstraints"]
        assert {"kubernetes.io/hostname", "topology.kubernetes.io/zone"} == {
            constraint["topologyKey"] for constraint in constraints
        }


@pytest.mark.parametrize("name", ["local", "production", "training", "GPUs, models from S3"])
def test_tensorflow_has_as_many_threads_as_its_container_has_cores(name: str, tmp_path: Path) -> None:
    documents = manifests.build(check.folder_of(name, check.K8S, tmp_path))
    programs = re.compile(r"/(serving|model-server|training):")
    containers = [each for each in manifests.containers(documents) if programs.search(each.spec["image"])]
    assert containers
    for container in containers:
        given = {each["name"]: each.get("valueFrom") for each in container.spec["env"]}
        for variable in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
            assert given[variable] == {"resourceFieldRef": {"resource": "limits.cpu"}}, container.where


@pytest.mark.parametrize("name", ["local", "production"])
def test_a_deployment_does_not_count_as_failed_while_its_pods_may_still_start(
    name: str, tmp_path: Path
) -> None:
    documents = manifests.build(check.folder_of(name, check.K8S, tmp_path))
    deployments = manifests.of_kind(documents, "Deployment")
    assert deployments
    for each in deployments:
        for container in each["spec"]["template"]["spec"]["containers"]:
            probe = container["startupProbe"]
            starting_s = probe["periodSeconds"] * probe["failureThreshold"]
            assert starting_s < each["spec"].get("progressDeadlineSeconds", 600), manifests.name_of(each)


def test_only_gateways_that_need_the_api_have_a_token() -> None:
    tokens = {}
    for overlay in ("local", "production"):
        documents = manifests.build(check.K8S / "overlays" / overlay)
        for each in manifests.of_kind(documents, "Deployment"):
            pod = each["spec"]["template"]["spec"]
            tokens[overlay, each["metadata"]["name"]] = pod.get("automountServiceAccountToken", True)
    assert {where for where, has in tokens.items() if has} == {("production", "gateway")}


def test_the_proxy_of_the_gateway_api_is_let_through() -> None:
    """Istio runs it in the Gateway's namespace, where all is denied that no policy allows."""
    documents = manifests.build(check.K8S / "overlays/production")
    (listening,) = manifests.of_kind(documents, "Gateway")
    proxy = {"gateway.networking.k8s.io/gateway-name": listening["metadata"]["name"]}
    policies = {
        each["metadata"]["name"]: each["spec"] for each in manifests.of_kind(documents, "NetworkPolicy")
    }
    callers = [each for rule in policies["gateway"]["ingress"] for each in rule["from"]]
    assert {"podSelector": {"matchLabels": proxy}} in callers
    own = policies["gateway-api"]
    assert own["podSelector"]["matchLabels"] == proxy
    ports = {each["port"] for rule in own["ingress"] for each in rule["ports"]}
    assert {each["port"] for each in listening["spec"]["listeners"]} <= ports

"""The manifests pass their checks, and the checks find mistakes that are made on purpose."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from k8s.tools import check, crd, manifests, metric_names, pin_bases

DOCKERFILE = check.K8S.parent / "Dockerfile"


@pytest.mark.parametrize("name", check.COMBINATIONS)
def test_each_combination_is_without_fault(name: str, tmp_path: Path) -> None:
    assert list(check.faults(name, scratch=tmp_path)) == []


def test_every_component_is_checked_somewhere() -> None:
    assert check.unused_components() == []


def test_the_definition_of_model_rollout_says_what_the_plan_says() -> None:
    assert crd.TARGET.read_text() == crd.text()


class Mistake(NamedTuple):
    """A text in a file under k8s/ that is replaced, and what the check must say of it."""

    file: str
    right: str
    wrong: str
    combination: str
    found_as: str


MISTAKES = {
    "flag that the model server does not take": Mistake(
        "base/model-server/deployment.yaml", "--enable_model_warmup", "--enable_warmup", "local",
        "unknown argument: --enable_warmup",
    ),
    "flag that sluice train does not take": Mistake(
        "components/training/job.yaml", "--strategy=", "--strategies=", "training",
        "sluice train: No such option: --strategies",
    ),
    "missing memory limit": Mistake(
        "base/gateway/deployment.yaml", 'cpu: "2"\n              memory: 1Gi', 'cpu: "2"', "local",
        "Deployment/gateway: gateway: resources.limits.memory is missing",
    ),
    "metric that the gateway does not have": Mistake(
        "components/autoscaling/gateway.yaml", "sluice_requests_in_flight", "sluice_inflight_requests",
        "production", "the gateway has no metric sluice_inflight_requests",
    ),
    "label that a metric does not have": Mistake(
        "components/autoscaling-keda/scaled-objects.yaml", 'stage="queue"', 'phase="queue"', "KEDA",
        "sluice_stage_duration_seconds_bucket has no label phase",
    ),
    "alert that is not PromQL": Mistake(
        "components/monitoring/rules.yaml", "(sluice_replica_up) == 0", "(sluice_replica_up == 0",
        "production", "PrometheusRule/sluice: SluiceReplicaDown: not PromQL",
    ),
    "field that ModelRollout does not have": Mistake(
        "components/canary-demo/rollout.yaml", "on_inconclusive:", "on_undecided:",
        "production with a rollout", "'on_undecided' was unexpected",
    ),
    "canary whose weights fall": Mistake(
        "components/canary-demo/rollout.yaml", "weight: 0.25", "weight: 0.75", "production with a rollout",
        "spec.plan.canary: a step has less weight than the one before",
    ),
    "misspelt field of Kubernetes": Mistake(
        "base/gateway/deployment.yaml", "readinessProbe:", "readynessProbe:", "local",
        "'readynessProbe' was unexpected",
    ),
    "container that may be root": Mistake(
        "base/gateway/deployment.yaml", "runAsNonRoot: true", "runAsNonRoot: false", "local",
        "Deployment/gateway: securityContext.runAsNonRoot must be true",
    ),
    "image by the tag latest": Mistake(
        "overlays/production/kustomization.yaml", "newTag: 0.1.0", "newTag: latest", "production",
        "image registry.example/sluice/gateway:latest has neither a version nor a digest",
    ),
    "setting that the gateway does not have": Mistake(
        "base/gateway/gateway.env", "SLUICE_MAX_BATCH=", "SLUICE_BATCH_MAX=", "local",
        "SLUICE_BATCH_MAX is no setting of the gateway",
    ),
    "setting out of range": Mistake(
        "base/gateway/gateway.env", "SLUICE_MAX_BATCH=32", "SLUICE_MAX_BATCH=0", "local",
        "max_batch: input should be greater than or equal to 1",
    ),
    "key that is nowhere mounted": Mistake(
        "components/rollouts-cluster/gateway.yaml", "mountPath: /etc/gateway-feedback",
        "mountPath: /etc/feedback", "production",
        "SLUICE_FEEDBACK_KEY_FILE=/etc/gateway-feedback/key: no volume is mounted at /etc/gateway-feedback",
    ),
    "keys that are nowhere mounted": Mistake(
        "components/keys/gateway.yaml", "mountPath: /etc/gateway-keys", "mountPath: /etc/keys",
        "production with TLS",
        "SLUICE_KEYS_FILE=/etc/gateway-keys/keys.toml: no volume is mounted at /etc/gateway-keys",
    ),
    "port on which no replica listens": Mistake(
        "base/gateway/gateway.env", "dns:model-servers:8500", "dns:model-servers:8600", "local",
        "Service model-servers has no port 8600",
    ),
    "file that the model server cannot parse": Mistake(
        "base/model-server/models.config", "base_path:", "path:", "local",
        '4:5 : Message type "tensorflow.serving.ModelConfig" has no field named "path"',
    ),
    "model that no server is told to serve": Mistake(
        "base/gateway/gateway.env", "SLUICE_MODELS=digits", "SLUICE_MODELS=digit", "local",
        "model 'digit' is in no model server's configuration; there are: digits",
    ),
    "probe that is missing": Mistake(
        "base/model-server/deployment.yaml", "livenessProbe:", "startupProbe2:", "local",
        "'startupProbe2' was unexpected",
    ),
    "pod that ends before nobody asks it": Mistake(
        "base/model-server/deployment.yaml", "PeriodSeconds: 60", "PeriodSeconds: 20", "local",
        "terminationGracePeriodSeconds is 20; preStop and a drain of 30 s take 50",
    ),
    "drain that is cut short": Mistake(
        "base/gateway/gateway.env", "DRAIN_TIMEOUT_S=30", "DRAIN_TIMEOUT_S=40", "local",
        "terminationGracePeriodSeconds is 45; preStop, SLUICE_DRAIN_TIMEOUT_S and the end of workers take 50",
    ),
    "drain of workers that is cut short": Mistake(
        "components/gateway-workers/gateway.yaml", "PeriodSeconds: 50", "PeriodSeconds: 44",
        "several processes in a pod",
        "terminationGracePeriodSeconds is 44; preStop, SLUICE_DRAIN_TIMEOUT_S and the end of workers take 45",
    ),
    "scrape that is not encrypted": Mistake(
        "components/tls/kustomization.yaml", "value: https\n      - op: add", "value: http\n      - op: add",
        "production with TLS", "PodMonitor/gateway: it scrapes by plain HTTP a gateway that takes TLS",
    ),
    "port that is called unencrypted": Mistake(
        "components/tls/kustomization.yaml", "path: /spec/ports/1/appProtocol\n        value: https",
        "path: /spec/ports/1/appProtocol\n        value: kubernetes.io/h2c", "production with TLS",
        "Service/gateway: port grpc is called kubernetes.io/h2c, and the gateway takes TLS",
    ),
    "probe that is not encrypted": Mistake(
        "components/tls/kustomization.yaml", "livenessProbe/httpGet/scheme\n        value: HTTPS",
        "livenessProbe/httpGet/scheme\n        value: HTTP", "local with TLS",
        "Deployment/gateway: gateway: livenessProbe asks by plain HTTP a gateway that takes TLS",
    ),
    "script that is no shell": Mistake(
        "components/store-s3/sync.sh", "\ndone", "\nend", "GPUs, models from S3",
        "/etc/store-sync/sync.sh: sh:",
    ),
    "folder of replicas' models that is not theirs": Mistake(
        "components/store-gcs/kustomization.yaml", "value: gs://sluice-models", "value: /models",
        "GPUs, models from GCS",
        "rollouts have replicas look for model 'digits' in /models/digits; it is in gs://sluice-models/digits",
    ),
    "plan with a word that is none": Mistake(
        "components/rollouts/plan.yaml", "on_new_version: hold", "on_new_version: wait", "local",
        "/etc/rollout-plan/plan.yaml:3: on_new_version: input should be 'hold' or 'rollout'",
    ),
    "pause of KEDA's that does nothing": Mistake(
        "components/autoscaling-keda/scaled-objects.yaml", "maxReplicaCount: 16",
        "maxReplicaCount: 16\n  cooldownPeriod: 900", "KEDA",
        "ScaledObject/model-server: cooldownPeriod is for the step to 0 replicas",
    ),
    "misspelt field of KEDA's": Mistake(
        "components/autoscaling-keda/scaled-objects.yaml", "stabilizationWindowSeconds: 900",
        "stabilisationWindowSeconds: 900", "KEDA", "'stabilisationWindowSeconds' was unexpected",
    ),
    "component before the one that it widens": Mistake(
        "overlays/production/kustomization.yaml",
        "network-policies\n  - ../../components/rollouts-cluster",
        "rollouts-cluster\n  - ../../components/network-policies", "production",
        "Deployment/gateway: gateway: no NetworkPolicy lets it reach Prometheus, port 9090",
    ),
    "policy that denies names": Mistake(
        "components/network-policies/policies.yaml", "port: 53", "port: 54", "production",
        "no NetworkPolicy lets it reach the cluster's DNS, port 53",
    ),
    "policy that keeps gateways from replicas": Mistake(
        "components/network-policies/policies.yaml", "port: 8500", "port: 8501", "production",
        "Deployment/gateway: gateway: no NetworkPolicy lets it reach Deployment/model-server, port 8500",
    ),
    "policy for gateways of another name": Mistake(
        "components/network-policies/policies.yaml",
        "app.kubernetes.io/name: gateway\n      ports:\n        - port: grpc",
        "app.kubernetes.io/name: gate\n      ports:\n        - port: grpc", "production",
        "Deployment/model-server: no NetworkPolicy lets Deployment/gateway: gateway in at port 8500",
    ),
    "policy that keeps Prometheus out": Mistake(
        "components/network-policies/policies.yaml", "port: rest", "port: web", "production",
        "PodMonitor/model-server: no NetworkPolicy lets Prometheus in at port rest",
    ),
    "collector of traces that no policy names": Mistake(
        "base/gateway/gateway.env", "SLUICE_MAX_BATCH=32",
        "SLUICE_MAX_BATCH=32\nSLUICE_TRACES_ENDPOINT=http://collector.monitoring:4317", "production",
        "Deployment/gateway: gateway: no NetworkPolicy lets it reach the collector of traces, port 4317",
    ),
    "right that is too wide": Mistake(
        "components/rollouts-cluster/rbac.yaml", '["list", "watch", "patch"]', '["*"]', "production",
        "Role/gateway: a rule grants *",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found(name: str, tmp_path: Path) -> None:
    mistake = MISTAKES[name]
    k8s = tmp_path / "k8s"
    shutil.copytree(check.K8S, k8s, ignore=shutil.ignore_patterns("tools", "__pycache__"))
    file = k8s / mistake.file
    text = file.read_text()
    assert mistake.right in text
    file.write_text(text.replace(mistake.right, mistake.wrong))
    found = list(check.faults(mistake.combination, k8s, tmp_path / "scratch"))
    assert any(mistake.found_as in fault for fault in found), found


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


def test_a_broken_overlay_is_a_fault_and_no_crash(tmp_path: Path) -> None:
    k8s = tmp_path / "k8s"
    shutil.copytree(check.K8S, k8s, ignore=shutil.ignore_patterns("tools", "__pycache__"))
    (k8s / "base/gateway/service.yaml").unlink()
    (fault,) = check.faults("local", k8s, tmp_path / "scratch")
    assert fault.startswith("it does not build: ")
    assert "service.yaml" in fault


def test_recorded_series_and_those_of_others_may_be_named() -> None:
    recorded = {"sluice:requests:rate5m"}
    for expression in (
        "sluice:requests:rate5m / 2",
        "rate(:tensorflow:serving:request_count[5m])",
        "rate(sluice_requests_total{outcome='ok',pod=~'$pod'}[$__rate_interval])",
        "sluice_build_info",
        "sum by (model) (sluice_queue_depth{model='digits'})",
        "rate(sluice_shadow_compared_total{class='7'}[5m])",
        "sluice_rollout_events_total",
    ):
        assert list(metric_names.check_expression(expression, recorded)) == []
    assert list(metric_names.check_expression("sluice:other", recorded)) == [
        "the gateway has no metric sluice:other"
    ]
    assert list(metric_names.check_expression("sluice_requests", set())) == [
        "the gateway has no metric sluice_requests"
    ]


def test_the_dockerfile_has_no_fault_that_hadolint_knows() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_would_say_so_if_a_base_were_not_pinned(tmp_path: Path) -> None:
    careless = tmp_path / "Dockerfile"
    careless.write_text("FROM python:latest\nRUN cd /tmp && pip install numpy\n")
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, careless], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "DL3007" in done.stdout


def test_digests_of_bases_are_filled_in(tmp_path: Path) -> None:
    copy = tmp_path / "Dockerfile"
    copy.write_text(DOCKERFILE.read_text())
    pinned = pin_bases.bases(copy.read_text())
    assert len(pinned) == 2
    program = [sys.executable, "-m", "k8s.tools.pin_bases", "--file", str(copy)]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*program, *arguments], capture_output=True, text=True, check=False, cwd=check.K8S.parent
        )

    given = {image: f"sha256:{number:064x}" for number, image in enumerate(pinned, start=1)}
    refused = run("nginx:1=sha256:" + "1" * 64)
    assert refused.returncode == 1
    assert "is no digest of one of: python:3.11-bookworm" in refused.stderr
    assert run(*(f"{image}={digest}" for image, digest in given.items())).returncode == 0
    assert pin_bases.bases(copy.read_text()) == given
    assert run("--check").returncode == 0
    assert copy.read_text().count("FROM") == DOCKERFILE.read_text().count("FROM")


def test_without_a_tool_it_is_said_how_to_pin_the_bases(tmp_path: Path) -> None:
    docker = tmp_path / "docker"  # as it is without buildx
    docker.write_text('#!/bin/sh\necho "unknown flag: $*" >&2\nexit 125\n')
    docker.chmod(0o755)
    copy = tmp_path / "Dockerfile"
    copy.write_text(DOCKERFILE.read_text())
    done = subprocess.run(
        [sys.executable, Path(pin_bases.__file__), "--file", str(copy)],
        capture_output=True, text=True, check=False, env={"PATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert "none of crane, skopeo and docker buildx is installed" in done.stderr
    assert "python:3.11-bookworm=sha256:" in done.stderr
    assert copy.read_text() == DOCKERFILE.read_text()

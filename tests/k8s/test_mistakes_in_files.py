"""What the checks say of files with a mistake; in what is built of them: test_mistakes.py."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from k8s.tools import check


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
        "SLUICE_BATCH_MAX is not a setting of the gateway",
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


def test_a_broken_overlay_is_a_fault_and_no_crash(tmp_path: Path) -> None:
    k8s = tmp_path / "k8s"
    shutil.copytree(check.K8S, k8s, ignore=shutil.ignore_patterns("tools", "__pycache__"))
    (k8s / "base/gateway/service.yaml").unlink()
    (fault,) = check.faults("local", k8s, tmp_path / "scratch")
    assert fault.startswith("it does not build: ")
    assert "service.yaml" in fault

"""What the checks say of documents in which one thing is wrong; in files: test_mistakes_in_files.py."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from k8s.tools import check, encryption, manifests, metric_names, policy, programs, reach, schemas
from k8s.tools.manifests import Document

Documents = dict[str, Document]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Document]]:
    """Gives the documents of a combination, each time new ones."""
    scratch = tmp_path_factory.mktemp("scratch")

    @cache
    def once(name: str) -> list[Document]:
        return manifests.build(check.folder_of(name, check.K8S, scratch))

    return lambda name: copy.deepcopy(once(name))


def named(documents: list[Document]) -> Documents:
    """The documents by kind and name, without the hash at the end that kustomize gives to ConfigMaps."""
    return {re.sub("-[bcdfghkmt2456789]{10}$", "", manifests.name_of(each)): each for each in documents}


def gateway(documents: Documents) -> Any:
    """The gateway's container."""
    return pod(documents)["containers"][0]


def pod(documents: Documents) -> Any:
    """The gateway's pod."""
    return documents["Deployment/gateway"]["spec"]["template"]["spec"]


def replica(documents: Documents) -> Any:
    """The model server's container."""
    return documents["Deployment/model-server"]["spec"]["template"]["spec"]["containers"][0]


def environment(documents: Documents) -> Any:
    """What gateway.env says."""
    return documents["ConfigMap/gateway"]["data"]


def policies(documents: Documents) -> Any:
    """The rules of the gateway's network policy."""
    return documents["NetworkPolicy/gateway"]["spec"]


class Wrong(NamedTuple):
    """What is done to the documents of a combination, and what a check must say of them."""

    checked_by: ModuleType
    change: Callable[[Documents], Any]
    found_as: str
    combination: str = "production with TLS"


WRONG = {
    "no probe of life": Wrong(
        policy, lambda d: gateway(d).pop("livenessProbe"), "gateway: livenessProbe is missing"
    ),
    "no probe of readiness": Wrong(
        policy, lambda d: gateway(d).pop("readinessProbe"), "gateway: readinessProbe is missing"
    ),
    "an end without a pause": Wrong(
        policy, lambda d: gateway(d)["lifecycle"]["preStop"]["sleep"].update(seconds=4),
        "gateway: lifecycle.preStop must sleep at least 5 s",
    ),
    "more rights than before": Wrong(
        policy, lambda d: gateway(d)["securityContext"].update(allowPrivilegeEscalation=True),
        "securityContext.allowPrivilegeEscalation must be false",
    ),
    "a root that can be written": Wrong(
        policy, lambda d: gateway(d)["securityContext"].pop("readOnlyRootFilesystem"),
        "securityContext.readOnlyRootFilesystem must be true",
    ),
    "capabilities": Wrong(
        policy, lambda d: gateway(d)["securityContext"]["capabilities"].update(drop=["NET_RAW"]),
        'securityContext.capabilities.drop must be ["ALL"]',
    ),
    "no request for a core": Wrong(
        policy, lambda d: gateway(d)["resources"]["requests"].pop("cpu"), "resources.requests.cpu is missing"
    ),
    "another namespace": Wrong(
        policy, lambda d: d["Service/gateway"]["metadata"].update(namespace="default"),
        "Service/gateway: namespace is 'default', not 'sluice'",
    ),
    "every system call": Wrong(
        policy, lambda d: pod(d)["securityContext"].update(seccompProfile={"type": "Unconfined"}),
        "securityContext.seccompProfile.type must be RuntimeDefault",
    ),
    "the node's network": Wrong(
        policy, lambda d: pod(d).update(hostNetwork=True), "hostNetwork is not allowed"
    ),
    "the node's files": Wrong(
        policy, lambda d: pod(d)["volumes"].append({"name": "node", "hostPath": {"path": "/"}}),
        "volume node is hostPath; that is not allowed",
    ),
    "a token for nobody": Wrong(
        policy,
        lambda d: d["Deployment/model-server"]["spec"]["template"]["spec"].pop(
            "automountServiceAccountToken"
        ),
        "automountServiceAccountToken must be false where no service account is named",
    ),
    "an account that is not there": Wrong(
        policy, lambda d: pod(d).update(serviceAccountName="gate"), "there is no ServiceAccount gate"
    ),
    "a claim that is not there": Wrong(
        policy,
        lambda d: pod(d)["volumes"].append({"name": "m", "persistentVolumeClaim": {"claimName": "store"}}),
        "there is no PersistentVolumeClaim store",
    ),
    "a ConfigMap that is not there": Wrong(
        policy, lambda d: gateway(d).update(envFrom=[{"configMapRef": {"name": "gate"}}]),
        "there is no ConfigMap gate",
    ),
    "a ConfigMap to mount that is not there": Wrong(
        policy,
        lambda d: pod(d)["volumes"].append({"name": "plan", "configMap": {"name": "rollout-plan"}}),
        "there is no ConfigMap rollout-plan",
    ),
    "two budgets for a pod": Wrong(
        policy,
        lambda d: d["PodDisruptionBudget/gateway"]["spec"]["selector"].update(
            matchLabels={"app.kubernetes.io/name": "model-server"}
        ),
        "Deployment/model-server: its pods are selected by PodDisruptionBudget/gateway and by "
        "PodDisruptionBudget/model-server",
    ),
    "an end by Kubernetes' default": Wrong(
        policy, lambda d: pod(d).pop("terminationGracePeriodSeconds"),
        "terminationGracePeriodSeconds is 30; preStop and a drain of 30 s take 40",
    ),
    "a mount of nothing": Wrong(
        policy, lambda d: gateway(d)["volumeMounts"].append({"name": "m", "mountPath": "/m"}),
        "gateway: there is no volume m",
    ),
    "a Service of no pods": Wrong(
        policy, lambda d: d["Service/gateway"]["spec"]["selector"].update(tier="front"),
        "Service/gateway: no pod has the labels",
    ),
    "a budget of no pods": Wrong(
        policy,
        lambda d: d["PodDisruptionBudget/gateway"]["spec"]["selector"]["matchLabels"].update(tier="x"),
        "PodDisruptionBudget/gateway: no pod has the labels",
    ),
    "an autoscaler of nothing": Wrong(
        policy,
        lambda d: d["HorizontalPodAutoscaler/gateway"]["spec"]["scaleTargetRef"].update(name="gate"),
        "HorizontalPodAutoscaler/gateway: there is no Deployment gate to scale",
    ),
    "a number that an autoscaler would have to share": Wrong(
        policy, lambda d: d["Deployment/gateway"]["spec"].update(replicas=2),
        "Deployment/gateway sets replicas itself; each apply undoes the scaling",
    ),
    "an image of nobody's": Wrong(
        programs, lambda d: gateway(d).update(image="nginx:1.29"),
        "it is not known what image nginx:1.29 runs",
    ),
    "a command that is none": Wrong(
        programs, lambda d: gateway(d).update(args=["gate"]), "sluice has no command 'gate'"
    ),
    "a program that is none of ours": Wrong(
        programs, lambda d: gateway(d).update(command=["/usr/sbin/nginx"]),
        "nginx is not a program whose flags can be checked",
    ),
    "a script that is not there": Wrong(
        programs, lambda d: d["ConfigMap/store-sync"]["data"].pop("sync.sh"),
        "store-sync: no ConfigMap that is mounted has the script /etc/store-sync/sync.sh",
        "GPUs, models from S3",
    ),
    "a plan that is not there": Wrong(
        programs, lambda d: d["ConfigMap/rollout-plan"]["data"].pop("plan.yaml"),
        "SLUICE_ROLLOUT_PLAN=/etc/rollout-plan/plan.yaml: no ConfigMap that is mounted has this file",
        "local",
    ),
    "a folder that the model server would not find": Wrong(
        programs,
        lambda d: d["ConfigMap/model-server"]["data"].update(
            {"models.config": 'model_config_list { config { name: "digits" base_path: "digits" } }'}
        ),
        "Expected model digits to have an absolute path", "local",
    ),
    "no replica": Wrong(
        programs, lambda d: environment(d).update(SLUICE_REPLICAS=""), "no replica is named (SLUICE_REPLICAS)"
    ),
    "a Service that is not there": Wrong(
        programs, lambda d: environment(d).update(SLUICE_REPLICAS="dns:models:8500"),
        "replicas: there is no Service models",
    ),
    "a Service with an address": Wrong(
        programs, lambda d: d["Service/model-servers"]["spec"].pop("clusterIP"),
        "replicas: Service model-servers is not headless",
    ),
    "a file that nobody reads": Wrong(
        programs, lambda d: d["ConfigMap/model-server"]["data"].update(notes=""),
        "no program reads notes",
    ),
    "a file that is not there": Wrong(
        programs, lambda d: d["ConfigMap/model-server"]["data"].pop("monitoring.config"),
        "--monitoring_config_file=/etc/model-server/monitoring.config: no ConfigMap that is mounted has this",
    ),
    "a batching file without batching": Wrong(
        programs, lambda d: replica(d)["args"].remove("--enable_batching=true"),
        "--batching_parameters_file without --enable_batching ends the server as it starts",
    ),
    "a dashboard that is no JSON": Wrong(
        programs, lambda d: d["ConfigMap/sluice-dashboards"]["data"].update({"fleet.json": "{"}),
        "fleet.json is not JSON",
    ),
    "a dashboard without a name": Wrong(
        programs, lambda d: d["ConfigMap/sluice-dashboards"]["data"].update({"fleet.json": '{"panels": []}'}),
        "fleet.json has no title, uid",
    ),
    "a panel of a metric that is none": Wrong(
        metric_names,
        lambda d: d["ConfigMap/sluice-dashboards"]["data"].update(
            {"fleet.json": '{"panels": [{"panels": [{"title": "T", "targets": [{"expr": "sluice_up"}]}]}]}'}
        ),
        "fleet.json: T: the gateway has no metric sluice_up",
    ),
    "an autoscaler by a counter": Wrong(
        metric_names,
        lambda d: d["HorizontalPodAutoscaler/gateway"]["spec"]["metrics"][0]["pods"]["metric"].update(
            name="sluice_requests_total"
        ),
        "sluice_requests_total is a counter; an autoscaler needs a gauge",
    ),
    "a gateway that is told of TLS by the ConfigMap": Wrong(
        encryption,
        lambda d: (
            gateway(d)["env"].remove(
                {"name": "SLUICE_TLS_CERTIFICATE", "value": "/etc/gateway-tls/tls.crt"}
            ),
            environment(d).update(SLUICE_TLS_CERTIFICATE="/etc/gateway-tls/tls.crt"),
            gateway(d)["readinessProbe"]["httpGet"].pop("scheme"),
        ),
        "readinessProbe asks by plain HTTP a gateway that takes TLS",
    ),
    "no callers but replicas": Wrong(
        reach,
        lambda d: policies(d)["ingress"][0].update(
            {"from": [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "model-server"}}}]}
        ),
        "PodMonitor/gateway: no NetworkPolicy lets Prometheus in at port http of Deployment/gateway",
    ),
    "no way to Kubernetes' API": Wrong(
        reach,
        lambda d: policies(d).update(egress=[rule for rule in policies(d)["egress"] if "to" in rule]),
        "gateway: no NetworkPolicy lets it reach Kubernetes' API, port 443",
    ),
    "Prometheus at another port": Wrong(
        reach,
        lambda d: [
            each.update(value="http://prometheus.example")
            for each in gateway(d)["env"] if each["name"] == "SLUICE_PROMETHEUS_URL"
        ],
        "gateway: no NetworkPolicy lets it reach Prometheus, port 80",
    ),
    "replicas elsewhere": Wrong(
        reach,
        lambda d: [
            rule.update(to=[{"namespaceSelector": {}}]) for rule in policies(d)["egress"] if "to" in rule
        ],
        "no NetworkPolicy lets it reach Deployment/model-server, port 8500",
    ),
    "a kind that Kubernetes does not have": Wrong(
        schemas, lambda d: d["Service/gateway"].update(kind="Listener"), "there is no v1 Listener"
    ),
    "a field that the oldest Kubernetes does not have": Wrong(
        schemas, lambda d: gateway(d)["lifecycle"].update(stopSignal="SIGTERM"),
        "('stopSignal' was unexpected) (Kubernetes 1.30)",
    ),
    "a field that the Gateway API does not have": Wrong(
        schemas, lambda d: d["HTTPRoute/gateway"]["spec"].update(hostname="a.example"),
        "HTTPRoute/gateway: spec:",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_and_nothing_was_before(
    name: str, build: Callable[[str], list[Document]]
) -> None:
    wrong = WRONG[name]
    documents = build(wrong.combination)
    assert list(wrong.checked_by.faults(documents)) == []
    wrong.change(named(documents))
    found = list(wrong.checked_by.faults(documents))
    assert any(wrong.found_as in fault for fault in found), found


def test_a_file_of_somebodys_own_is_checked_like_ours(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [service.yaml]\nnamespace: sluice\n")
    (tmp_path / "service.yaml").write_text(
        "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {selector: {a: b}, ports: [{port: 80}]}\n"
    )
    assert list(check.faults(str(tmp_path))) == ["Service/s: no pod has the labels {'a': 'b'}"]


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

"""Hold network policies against what programs connect to: one that selects a pod denies what none allows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx

from k8s.tools.manifests import Document, containers, environment, name_of, of_kind, pod_template
from serving.backends import discovery
from serving.errors import InvalidInput

# Settings of the gateway that are addresses of programs elsewhere.
_ELSEWHERE = {"SLUICE_PROMETHEUS_URL": "Prometheus", "SLUICE_TRACES_ENDPOINT": "the collector of traces"}


def faults(documents: Sequence[Document]) -> Iterator[str]:
    """What a container cannot reach that it needs, and what cannot be scraped."""
    for container in containers(documents):
        labels = _labels(container.owner)
        rules = _rules(documents, labels, "Egress")
        values = environment(container, documents)
        for what, port in _needed(values):
            if not any(_has_port(rule, {port}) for rule in rules):
                yield f"{container.where}: no NetworkPolicy lets it reach {what}, port {port}"
        for pods, port in _replicas(values.get("SLUICE_REPLICAS", ""), documents):
            what = f"{name_of(pods)}, port {port}"
            if not any(_has_port(rule, {port}) and _names(rule, "to", _labels(pods)) for rule in rules):
                yield f"{container.where}: no NetworkPolicy lets it reach {what}"
            let_in = _rules(documents, _labels(pods), "Ingress")
            ports = _called(pods, port)
            if not any(_has_port(rule, ports) and _names(rule, "from", labels) for rule in let_in):
                yield f"{name_of(pods)}: no NetworkPolicy lets {container.where} in at port {port}"
    yield from _scrapes(documents)


def _needed(values: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    yield "the cluster's DNS", 53
    if "SLUICE_ROLLOUT_NAMESPACE" in values:
        yield "Kubernetes' API", 443
    for setting, what in _ELSEWHERE.items():
        if setting in values:
            url = httpx.URL(values[setting])
            yield what, url.port or (443 if url.scheme == "https" else 80)


def _replicas(setting: str, documents: Sequence[Document]) -> Iterator[tuple[Document, int]]:
    """What makes the pods of each Service that is named, and the port that they are called at."""
    try:
        _, names = discovery.split([each.strip() for each in setting.split(",") if each.strip()])
    except InvalidInput:  # said by the check of the settings
        return
    for host, port in names:
        for service in of_kind(documents, "Service"):
            if service["metadata"]["name"] == host.partition(".")[0]:
                selected = _pods(documents, service["spec"].get("selector", {}))
                yield from ((each, port) for each in selected)


def _scrapes(documents: Sequence[Document]) -> Iterator[str]:
    for monitor in of_kind(documents, "PodMonitor"):
        for pods in _pods(documents, monitor["spec"]["selector"].get("matchLabels", {})):
            let_in = _rules(documents, _labels(pods), "Ingress")
            for endpoint in monitor["spec"]["podMetricsEndpoints"]:
                port = endpoint.get("port", endpoint.get("portNumber"))
                ports = _called(pods, port)
                if not any(_has_port(rule, ports) and _is_for_others(rule, documents) for rule in let_in):
                    told = f"no NetworkPolicy lets Prometheus in at port {port}"
                    yield f"{name_of(monitor)}: {told} of {name_of(pods)}"


def _pods(documents: Sequence[Document], selector: Document) -> list[Document]:
    """What makes pods that have all the labels of a selector, which has some."""
    return [each for each in documents if selector and selector.items() <= _labels(each).items()]


def _labels(document: Document) -> Document:
    """The labels of the pods that a document makes; none if it makes none."""
    template = pod_template(document)
    labels: Document = {} if template is None else template["metadata"].get("labels", {})
    return labels


def _called(pods: Document, port: int | str) -> set[Any]:
    """A port by its number and by its name."""
    for container in (pod_template(pods) or {})["spec"]["containers"]:
        for each in container.get("ports", ()):
            if port in (each["containerPort"], each.get("name")):
                return {each["containerPort"], each.get("name", port)}
    return {port}


def _rules(documents: Sequence[Document], labels: Document, direction: str) -> list[Document]:
    """What policies let pods with these labels do; where none denies anything a rule that allows all."""
    selecting = [
        each["spec"]
        for each in of_kind(documents, "NetworkPolicy")
        if direction in each["spec"].get("policyTypes", ())
        and each["spec"]["podSelector"].get("matchLabels", {}).items() <= labels.items()
    ]
    return [rule for spec in selecting for rule in spec.get(direction.lower(), ())] if selecting else [{}]


def _has_port(rule: Document, port: set[Any]) -> bool:
    return not rule.get("ports") or any(each.get("port") in {None, *port} for each in rule["ports"])


def _names(rule: Document, side: str, labels: Document) -> bool:
    """Whether a rule is for pods of the same namespace with these labels."""
    return not rule.get(side) or any(
        "namespaceSelector" not in each
        and "podSelector" in each
        and each["podSelector"].get("matchLabels", {}).items() <= labels.items()
        for each in rule[side]
    )


def _is_for_others(rule: Document, documents: Sequence[Document]) -> bool:
    """Whether a rule is for more than the pods that the documents make."""
    return not rule.get("from") or any(
        set(each) != {"podSelector"} or not _pods(documents, each["podSelector"].get("matchLabels", {}))
        for each in rule["from"]
    )

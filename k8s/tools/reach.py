"""Hold network policies against what programs connect to: one that selects a pod denies what none allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import httpx

from k8s.tools.manifests import Container, Document, containers, of_kind, pod_template


def faults(documents: Sequence[Document]) -> Iterator[str]:
    """What a container cannot reach that it needs."""
    for container in containers(documents):
        allowed = _allowed(container, documents)
        for what, port in _needed(container):
            if allowed is not None and port not in allowed:
                yield f"{container.where}: no NetworkPolicy lets it reach {what}, port {port}"


def _needed(container: Container) -> Iterator[tuple[str, int]]:
    yield "the cluster's DNS", 53
    values = {each["name"]: each.get("value", "") for each in container.spec.get("env", ())}
    if "SLUICE_ROLLOUT_NAMESPACE" in values:
        yield "Kubernetes' API", 443
    if "SLUICE_PROMETHEUS_URL" in values:
        url = httpx.URL(values["SLUICE_PROMETHEUS_URL"])
        yield "Prometheus", url.port or (443 if url.scheme == "https" else 80)


def _allowed(container: Container, documents: Sequence[Document]) -> set[int | str] | None:
    """The ports to which something is allowed; None where no policy denies anything."""
    labels = (pod_template(container.owner) or {})["metadata"].get("labels", {})
    selecting = [
        each["spec"]
        for each in of_kind(documents, "NetworkPolicy")
        if "Egress" in each["spec"].get("policyTypes", ())
        and each["spec"]["podSelector"].get("matchLabels", {}).items() <= labels.items()
    ]
    if not selecting:
        return None
    return {
        port["port"]
        for spec in selecting
        for rule in spec.get("egress", ())
        for port in rule.get("ports", ())
    }

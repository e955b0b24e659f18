"""Hold what speaks to a gateway against whether it takes TLS: probes, scrapes, what Services call ports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from k8s.tools.manifests import Container, Document, containers, environment, name_of, of_kind, pod_template

_SETTING = "SLUICE_TLS_CERTIFICATE"
_PLAIN = frozenset({"http", "grpc", "kubernetes.io/h2c"})
_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def faults(documents: Sequence[Document]) -> Iterator[str]:
    """What would come unencrypted to a gateway that answers by TLS alone."""
    for container in containers(documents):
        if environment(container, documents).get(_SETTING):
            yield from _probes(container)
            yield from _others(container, documents)


def _probes(container: Container) -> Iterator[str]:
    for name in _PROBES:
        asked = container.spec.get(name, {}).get("httpGet")
        if asked is not None and asked.get("scheme") != "HTTPS":
            yield f"{container.where}: {name} asks by plain HTTP a gateway that takes TLS"


def _others(container: Container, documents: Sequence[Document]) -> Iterator[str]:
    labels = (pod_template(container.owner) or {})["metadata"]["labels"]
    for monitor in of_kind(documents, "PodMonitor"):
        if monitor["spec"]["selector"].get("matchLabels", {}).items() <= labels.items():
            for endpoint in monitor["spec"]["podMetricsEndpoints"]:
                if endpoint.get("scheme", "http").lower() != "https":
                    yield f"{name_of(monitor)}: it scrapes by plain HTTP a gateway that takes TLS"
    for service in of_kind(documents, "Service"):
        if service["spec"]["selector"].items() <= labels.items():
            for port in service["spec"]["ports"]:
                if port.get("appProtocol") in _PLAIN:
                    told = f"port {port['name']} is called {port['appProtocol']}, and the gateway takes TLS"
                    yield f"{name_of(service)}: {told}"

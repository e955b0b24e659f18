"""What every manifest here keeps to, whatever the cluster would let pass."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from k8s.tools.manifests import Container, Document, containers, name_of, of_kind, pod_template

NAMESPACE = "sluice"
_CLUSTER_WIDE = frozenset({"Namespace", "CustomResourceDefinition"})
# What the Pod Security Standard `restricted` allows.
_VOLUMES = frozenset(
    {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
)
_PINNED = re.compile(r":(?!latest$)[\w][\w.-]*$|@sha256:[0-9a-f]{64}$")


def faults(documents: Sequence[Document]) -> Iterator[str]:
    """Where the documents break the house's rules, or do not fit each other."""
    for container in containers(documents):
        yield from (f"{container.where}: {fault}" for fault in _container(container))
    for document in documents:
        yield from (f"{name_of(document)}: {fault}" for fault in _document(document))
    yield from _references(documents)
    yield from _overlaps(documents)


def _container(container: Container) -> Iterator[str]:
    spec = container.spec
    image = spec.get("image", "")
    if not _PINNED.search(image):
        yield f"image {image or '(none)'} has neither a version nor a digest"
    resources = spec.get("resources", {})
    for part, names in (("limits", ("cpu", "memory")), ("requests", ("cpu", "memory"))):
        for name in names:
            if name not in resources.get(part, {}):
                yield f"resources.{part}.{name} is missing"
    yield from _security(spec.get("securityContext", {}))
    if container.owner["kind"] != "Job" and not container.is_init:
        yield from _lifecycle(container)


def _security(security: Document) -> Iterator[str]:
    if security.get("allowPrivilegeEscalation") is not False:
        yield "securityContext.allowPrivilegeEscalation must be false"
    if security.get("readOnlyRootFilesystem") is not True:
        yield "securityContext.readOnlyRootFilesystem must be true"
    if security.get("capabilities", {}).get("drop") != ["ALL"]:
        yield 'securityContext.capabilities.drop must be ["ALL"]'


def _lifecycle(container: Container) -> Iterator[str]:
    spec = container.spec
    if "livenessProbe" not in spec:
        yield "livenessProbe is missing"
    is_sidecar = spec.get("restartPolicy") == "Always"
    if "readinessProbe" not in spec and not is_sidecar:
        yield "readinessProbe is missing"
    if not is_sidecar:
        yield from _ending(container)


def _ending(container: Container) -> Iterator[str]:
    """A pod must outlast the removal of its endpoints, and be given the time that this takes."""
    pause = container.spec.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    if pause < 5:
        yield "lifecycle.preStop must sleep at least 5 s, until nobody sends requests any more"
    grace = container.pod.get("terminationGracePeriodSeconds", 30)
    if grace < pause + 30:
        yield f"terminationGracePeriodSeconds is {grace}; preStop and a drain of 30 s take {pause + 30}"


def _document(document: Document) -> Iterator[str]:
    metadata = document.get("metadata", {})
    if document["kind"] not in _CLUSTER_WIDE and metadata.get("namespace") != NAMESPACE:
        yield f"namespace is {metadata.get('namespace')!r}, not {NAMESPACE!r}"
    if document["kind"] in ("Role", "ClusterRole"):
        for rule in document.get("rules", ()):
            if "*" in [*rule.get("verbs", ()), *rule.get("resources", ()), *rule.get("apiGroups", ())]:
                yield "a rule grants *; name what is needed"
    template = pod_template(document)
    if template is not None:
        yield from _pod(template["spec"])


def _pod(pod: Document) -> Iterator[str]:
    security = pod.get("securityContext", {})
    if security.get("runAsNonRoot") is not True:
        yield "securityContext.runAsNonRoot must be true"
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "securityContext.seccompProfile.type must be RuntimeDefault"
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            yield f"{field} is not allowed"
    if "serviceAccountName" not in pod and pod.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken must be false where no service account is named"
    for volume in pod.get("volumes", ()):
        kinds = volume.keys() - {"name"}
        if not kinds or kinds - _VOLUMES:
            yield f"volume {volume['name']} is {', '.join(sorted(kinds)) or 'nothing'}; that is not allowed"


def _references(documents: Sequence[Document]) -> Iterator[str]:
    """Names of other documents that do not exist, and selectors that select nothing."""
    there = {(document["kind"], document["metadata"]["name"]) for document in documents}
    labels = [template["metadata"].get("labels", {}) for document in documents
              if (template := pod_template(document)) is not None]  # fmt: skip
    for document in of_kind(documents, "Service", "PodDisruptionBudget", "PodMonitor"):
        if not any(_selects(document, each) for each in labels):
            yield f"{name_of(document)}: no pod has the labels {document['spec'].get('selector')}"
    for container in containers(documents):
        for kind, name in _names(container):
            if (kind, name) not in there:
                yield f"{container.where}: there is no {kind} {name}"
        mounted = {volume["name"] for volume in container.pod.get("volumes", ())}
        for mount in container.spec.get("volumeMounts", ()):
            if mount["name"] not in mounted:
                yield f"{container.where}: there is no volume {mount['name']}"
    for document in of_kind(documents, "HorizontalPodAutoscaler", "ScaledObject"):
        target = document["spec"]["scaleTargetRef"]
        yield from _scaling(document, (target.get("kind", "Deployment"), target["name"]), documents)


def _overlaps(documents: Sequence[Document]) -> Iterator[str]:
    """Pods that two of a kind select: with two budgets one is never evicted, in two Services it is twice."""
    for owner in documents:
        template = pod_template(owner)
        labels = {} if template is None else template["metadata"].get("labels", {})
        for kind in ("Deployment", "Service", "PodDisruptionBudget"):
            found = [name_of(each) for each in of_kind(documents, kind) if _selects(each, labels)]
            if len(found) > 1:
                yield f"{name_of(owner)}: its pods are selected by {' and by '.join(found)}"


def _selects(document: Document, labels: Document) -> bool:
    selector = document["spec"].get("selector", {})
    selector = selector.get("matchLabels", selector)
    return bool(selector) and selector.items() <= labels.items()


def _names(container: Container) -> Iterator[tuple[str, str]]:
    for source in container.spec.get("envFrom", ()):
        if "configMapRef" in source:
            yield "ConfigMap", source["configMapRef"]["name"]
    for volume in container.pod.get("volumes", ()):
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
    if "serviceAccountName" in container.pod:
        yield "ServiceAccount", container.pod["serviceAccountName"]


def _scaling(document: Document, target: tuple[str, str], documents: Sequence[Document]) -> Iterator[str]:
    if "cooldownPeriod" in document["spec"] and document["spec"].get("minReplicaCount", 0) > 0:
        yield (
            f"{name_of(document)}: cooldownPeriod is for the step to 0 replicas, but minReplicaCount is "
            "more; advanced.horizontalPodAutoscalerConfig.behavior says how they become fewer"
        )
    found = [each for each in of_kind(documents, target[0]) if each["metadata"]["name"] == target[1]]
    if not found:
        yield f"{name_of(document)}: there is no {target[0]} {target[1]} to scale"
    for each in found:
        if "replicas" in each["spec"]:
            yield f"{name_of(document)}: {name_of(each)} sets replicas itself; each apply undoes the scaling"

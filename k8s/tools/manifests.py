"""Build kustomizations with kubectl's own kustomize, and walk what comes out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]

# Where a pod's template is in each kind that has one.
_POD_PATHS: Mapping[str, tuple[str, ...]] = {
    "Deployment": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "DaemonSet": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
}


class BuildError(Exception):
    """Kustomize refused; the text is its own."""


@dataclass(frozen=True, slots=True)
class Container:
    """One container of a pod, with where it is.

    Attributes:
        where: `Kind/name: container`, for messages.
        owner: the document that it is in.
        pod: the pod's spec.
        spec: the container's own.
        is_init: whether it is an init container that ends before the others begin.
    """

    where: str
    owner: Document
    pod: Document
    spec: Document
    is_init: bool

    @property
    def command_line(self) -> list[str]:
        """`command` and `args`, as they are given."""
        return [*self.spec.get("command", ()), *self.spec.get("args", ())]


def find_kubectl() -> str:
    """The kubectl beside this Python, or the one on the path; SystemExit if there is none."""
    found = shutil.which("kubectl", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        sys.exit("error: kubectl is not installed; `make install-dev` brings it")
    return found


def build(folder: Path) -> list[Document]:
    """What `kubectl kustomize` makes of a folder; raises BuildError."""
    done = subprocess.run(
        [find_kubectl(), "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BuildError(done.stderr.strip().removeprefix("error: "))
    return [document for document in yaml.load_all(done.stdout, yaml.CSafeLoader) if document]


def name_of(document: Document) -> str:
    """`Kind/name`, for messages."""
    return f"{document.get('kind')}/{document.get('metadata', {}).get('name')}"


def of_kind(documents: Sequence[Document], *kinds: str) -> list[Document]:
    """The documents of these kinds."""
    return [document for document in documents if document.get("kind") in kinds]


def pod_template(document: Document) -> Document | None:
    """The template of a document's pods, if it makes any."""
    template: Any = document
    for key in _POD_PATHS.get(document.get("kind", ""), ("-",)):
        template = template.get(key, {})
    return template or None


def containers(documents: Sequence[Document]) -> Iterator[Container]:
    """Every container of every pod that the documents make, init containers included."""
    for document in documents:
        template = pod_template(document)
        if template is None:
            continue
        pod = template["spec"]
        for key in ("initContainers", "containers"):
            for spec in pod.get(key, ()):
                is_init = key == "initContainers" and spec.get("restartPolicy") != "Always"
                yield Container(f"{name_of(document)}: {spec['name']}", document, pod, spec, is_init)


def config_map(documents: Sequence[Document], name: str | None) -> dict[str, str]:
    """What a ConfigMap holds; nothing if it is not there."""
    for document in of_kind(documents, "ConfigMap"):
        if document["metadata"]["name"] == name:
            return dict(document.get("data", {}))
    return {}


def environment(container: Container, documents: Sequence[Document]) -> dict[str, str]:
    """A container's variables, as far as they are written down; `env` goes before what ConfigMaps hold."""
    found: dict[str, str] = {}
    for source in container.spec.get("envFrom", ()):
        found |= config_map(documents, source.get("configMapRef", {}).get("name"))
    return found | {each["name"]: each.get("value", "") for each in container.spec.get("env", ())}

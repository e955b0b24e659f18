"""Build every overlay and combination of components, and check all that comes out.

    python -m k8s.tools.check [NAME or FOLDER ...]

Checked: the build itself; schemas (Kubernetes, the custom resource with its rules, subsets of others); the
house's policy; flags, settings and files against the programs that read them; network policies against what
those connect to; metrics in autoscalers, rules and dashboards against the gateway's own. What only a cluster
can say (admission, scheduling, GPUs) is not checked, and the last line says so.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from k8s.tools import crd, encryption, manifests, metric_names, policy, programs, reach, schemas
from k8s.tools.manifests import BuildError

K8S = Path(__file__).resolve().parents[1]
SCRATCH = K8S.parent / "build" / "manifests"

# The overlays, and components that no overlay has, each in a place where it makes sense.
COMBINATIONS: Mapping[str, tuple[str, ...]] = {
    "local": ("overlays/local",),
    "production": ("overlays/production",),
    "production with a rollout": ("overlays/production", "canary-demo"),
    "local with TLS": ("overlays/local", "tls"),
    "production with TLS": ("overlays/production", "tls", "keys"),
    "GPUs, models from GCS": ("overlays/production", "store-gcs"),
    "GPUs, models from S3": ("overlays/production", "store-s3"),
    "training": ("overlays/production", "training", "training-rollout"),
    "KEDA": ("base", "gpu", "monitoring", "autoscaling-keda", "gateway-workers"),
    "several processes in a pod": ("overlays/production", "gateway-workers"),
}


def folder_of(name: str, k8s: Path, scratch: Path) -> Path:
    """The folder to build: the overlay itself, one written for the combination, or one of somebody's own."""
    if name not in COMBINATIONS:
        return Path(name)
    base, *components = COMBINATIONS[name]
    if not components:
        return k8s / base
    folder = scratch / "".join(letter if letter.isalnum() else "-" for letter in name)
    folder.mkdir(parents=True, exist_ok=True)

    def reach(path: str) -> str:
        return os.path.relpath(k8s / path, folder)

    content = {
        "namespace": policy.NAMESPACE,
        "resources": [reach(base)],
        "components": [reach(f"components/{each}") for each in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return folder


def faults(name: str, k8s: Path = K8S, scratch: Path = SCRATCH) -> Iterator[str]:
    """What is wrong with one combination."""
    try:
        documents = manifests.build(folder_of(name, k8s, scratch))
    except BuildError as error:
        yield f"it does not build: {error}"
        return
    found_by_schema = list(schemas.faults(documents))
    yield from found_by_schema
    if found_by_schema:  # what has the wrong shape cannot be looked at further
        return
    for check in (policy, programs, encryption, reach, metric_names):
        yield from check.faults(documents)


def unused_components(k8s: Path = K8S) -> list[str]:
    """Components that no combination builds: nothing would check them."""
    used = {each for combination in COMBINATIONS.values() for each in combination}
    for overlay in (k8s / "overlays").iterdir():
        listed = yaml.safe_load((overlay / "kustomization.yaml").read_text()).get("components", ())
        used |= {each.rpartition("/")[2] for each in listed}
    return sorted(each.name for each in (k8s / "components").iterdir() if each.name not in used)


def main() -> None:
    """Check all, or the named ones; exits 1 if there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(COMBINATIONS), metavar="NAME or FOLDER")
    options = parser.parse_args()
    unknown = {each for each in options.names if each not in COMBINATIONS and not Path(each).is_dir()}
    if unknown:
        sys.exit(
            f"error: there is neither a build nor a folder {', '.join(sorted(unknown))}; "
            f"there are: {', '.join(COMBINATIONS)}"
        )
    started = time.monotonic()
    count = 0
    for name in options.names:
        found = list(dict.fromkeys(faults(name)))
        count += len(found)
        print(f"{name}: {'ok' if not found else ''}")
        for fault in found:
            print(f"  error: {fault}")
    if crd.TARGET.read_text() != crd.text():
        count += 1
        print("  error: k8s/crd/modelrollouts.yaml is not what the plan says; run python -m k8s.tools.crd")
    for component in unused_components():
        count += 1
        print(f"  error: components/{component} is in no combination")
    spent_s = time.monotonic() - started
    versions = " and ".join(schemas.KUBERNETES_VERSIONS)
    print(
        f"{count} faults in {len(options.names)} builds, Kubernetes {versions}, {spent_s:.1f} s; "
        "admission and scheduling need a cluster, and are not checked"
    )
    sys.exit(1 if count else 0)


if __name__ == "__main__":
    main()

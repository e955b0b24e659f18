"""Fill the digests of the base images in the Dockerfile.

    python k8s/tools/pin_bases.py                  asks the images' registries, through a tool that is at hand
    python k8s/tools/pin_bases.py NAME:TAG=sha256:HEX ...      takes them from the command line
    python k8s/tools/pin_bases.py --check          exits 1 if a digest is not filled in

The tool is the first of `crane`, `skopeo` and `docker buildx` that is installed.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

DOCKERFILE = Path(__file__).resolve().parents[2] / "Dockerfile"
UNFILLED = "sha256:" + "0" * 64
_BASE = re.compile(r"^(FROM\s+)(?P<image>\S+:\S+?)@(?P<digest>sha256:[0-9a-f]{64})", re.MULTILINE)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

TOOLS = {
    "crane": ("crane", "digest"),
    "skopeo": ("skopeo", "inspect", "--format", "{{.Digest}}"),
    "docker": ("docker", "buildx", "imagetools", "inspect", "--format", "{{.Manifest.Digest}}"),
}


def bases(text: str) -> dict[str, str]:
    """The base images of a Dockerfile that are pinned: name and tag -> digest."""
    return {found["image"]: found["digest"] for found in _BASE.finditer(text)}


def fill(text: str, digests: dict[str, str]) -> str:
    """The Dockerfile with `digests` in place of those that it has."""
    return _BASE.sub(
        lambda found: f"{found[1]}{found['image']}@{digests.get(found['image'], found['digest'])}", text
    )


def _is_installed(name: str) -> bool:
    """Whether a tool is there; Docker's command alone is not enough, it must have buildx."""
    if shutil.which(name) is None:
        return False
    if name != "docker":
        return True
    return subprocess.run(["docker", "buildx", "version"], capture_output=True, check=False).returncode == 0


def ask(image: str) -> str:
    """The digest of an image, from its registry; SystemExit says what is missing."""
    name = next((name for name in TOOLS if _is_installed(name)), None)
    if name is None:
        sys.exit(
            "error: none of crane, skopeo and docker buildx is installed; install one, or pass the digests: "
            f"{image}=sha256:…"
        )
    reference = f"docker://{image}" if name == "skopeo" else image
    done = subprocess.run([*TOOLS[name], reference], capture_output=True, text=True, check=False)
    found = _DIGEST.search(done.stdout)
    if done.returncode or found is None:
        sys.exit(f"error: {name} does not tell the digest of {image}: {done.stderr.strip()}")
    return found[0]


def main() -> None:
    """Fill or check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("given", nargs="*", metavar="NAME:TAG=sha256:HEX")
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument("--file", type=Path, default=DOCKERFILE)
    options = parser.parse_args()
    text = options.file.read_text()
    pinned = bases(text)
    if options.check:
        unfilled = [image for image, digest in pinned.items() if digest == UNFILLED]
        if unfilled:
            sys.exit(f"error: no digest is filled in for {', '.join(unfilled)}; run k8s/tools/pin_bases.py")
        return
    digests = dict(each.split("=", 1) for each in options.given if "=" in each)
    for image, digest in digests.items():
        if image not in pinned or not _DIGEST.fullmatch(digest):
            sys.exit(f"error: {image}={digest} is not a digest of one of: {', '.join(pinned)}")
    digests = digests or {image: ask(image) for image in pinned}
    options.file.write_text(fill(text, digests))
    for image, digest in digests.items():
        print(f"{image}@{digest}")


if __name__ == "__main__":
    main()

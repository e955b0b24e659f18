"""The images: the Dockerfile takes the steps of the tree that is built without an engine; pinned bases."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from k8s.tools import check, image_tree, pin_bases
from tests.doors.test_tls import issue
from tests.support.gateways import gateway_over

REPOSITORY = check.K8S.parent
FILE = REPOSITORY / "Dockerfile"
DOCKERFILE = FILE.read_text()


def stage(name: str) -> str:
    """The text of one stage."""
    found = re.search(rf"^FROM \S+ AS {name}\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


@pytest.mark.parametrize("target", ["gateway", "model-server", "training"])
def test_each_image_is_of_the_tree_that_the_script_lays_out(target: str) -> None:
    lock = "training-gpu" if target == "training" else target
    assert f'RUN ["k8s/tools/install_tree.sh", "{lock}", "/out"]' in stage(f"build-{target}")
    assert f"COPY requirements/{lock}.txt requirements/" in stage(f"build-{target}")
    assert (REPOSITORY / f"requirements/{lock}.txt").is_file()
    assert f"COPY --from=build-{target} /out/ /" in stage(target)


def test_the_tree_is_staged_from_what_the_dockerfile_copies(tmp_path: Path) -> None:
    image_tree.stage_sources(tmp_path)
    staged = {each.name for each in tmp_path.iterdir()}
    copied = set(re.findall(r"^COPY (\w+) \1$", stage("build-gateway"), re.MULTILINE))
    assert copied == {"protos", "serving", "training"}
    assert copied | {"pyproject.toml", "README.md", "requirements"} == staged
    assert not list(tmp_path.rglob("__pycache__"))


def test_nothing_runs_as_root_and_nothing_is_left_to_a_tag() -> None:
    assert "USER 65532:65532" in stage("runtime")
    assert "USER root" not in DOCKERFILE
    bases = re.findall(r"^FROM (\S+) AS", DOCKERFILE, re.MULTILINE)
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", DOCKERFILE, re.MULTILINE))
    assert [base for base in bases if base not in stages and "@sha256:" not in base] == []


@pytest.mark.parametrize("lock", ["gateway", "model-server", "training-gpu", "image"])
def test_every_package_of_an_image_is_locked_by_hash(lock: str) -> None:
    text = (REPOSITORY / f"requirements/{lock}.txt").read_text()
    packages = re.findall(r"^([a-z0-9][a-z0-9._-]*(?:\[[\w,-]+\])?==\S+)", text, re.MULTILINE)
    assert len(packages) > 10
    for entry in re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE):
        assert not entry.strip() or "--hash=sha256:" in entry, entry
    if lock == "gateway":
        assert not [package for package in packages if package.startswith(("tensorflow", "keras"))]


def test_the_script_is_plain_shell() -> None:
    done = subprocess.run(
        ["sh", "-n", REPOSITORY / "k8s/tools/install_tree.sh"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_the_engine_is_sent_is_what_the_dockerfile_copies() -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    sent = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    sources = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    assert len(sources) > 10
    for source in {each for line in sources for each in line.split()}:
        assert any(source == each or source.startswith(each + "/") for each in sent), source


@pytest.mark.parametrize("encrypted", [False, True])
async def test_the_health_check_asks_as_the_gateway_speaks(encrypted: bool, tmp_path: Path) -> None:
    check_it = re.search(r"^HEALTHCHECK .*?CMD (\[.+?\])$", stage("gateway"), re.MULTILINE | re.DOTALL)
    assert check_it
    _, *program = json.loads(check_it[1])
    papers, _ = issue(tmp_path, "server")
    tls: dict[str, Any] = {}
    if encrypted:
        tls = {"tls_certificate": papers.certificate, "tls_key": papers.key}

    async def fault(**variables: str) -> str:
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, *program], env=os.environ | variables, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        return done.stderr if done.returncode else ""

    async with gateway_over(wait=False, **tls) as (up, _):
        port = up.http_url.rpartition(":")[2]
        variables = {f"SLUICE_{name.upper()}": str(value) for name, value in tls.items()}
        assert await fault(SLUICE_HTTP_PORT=port, **variables) == ""
    assert "Connection refused" in await fault(SLUICE_HTTP_PORT=port, **variables)


def test_the_dockerfile_has_no_fault_that_hadolint_knows() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, FILE], capture_output=True, text=True, check=False)
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
    copy.write_text(DOCKERFILE)
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
    assert "is not a digest of one of: python:3.11-bookworm" in refused.stderr
    assert run(*(f"{image}={digest}" for image, digest in given.items())).returncode == 0
    assert pin_bases.bases(copy.read_text()) == given
    assert run("--check").returncode == 0
    assert copy.read_text().count("FROM") == DOCKERFILE.count("FROM")


def test_without_a_tool_it_is_said_how_to_pin_the_bases(tmp_path: Path) -> None:
    docker = tmp_path / "docker"  # as it is without buildx
    docker.write_text('#!/bin/sh\necho "unknown flag: $*" >&2\nexit 125\n')
    docker.chmod(0o755)
    copy = tmp_path / "Dockerfile"
    copy.write_text(DOCKERFILE)
    done = subprocess.run(
        [sys.executable, Path(pin_bases.__file__), "--file", str(copy)],
        capture_output=True, text=True, check=False, env={"PATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert "none of crane, skopeo and docker buildx is installed" in done.stderr
    assert "python:3.11-bookworm=sha256:" in done.stderr
    assert copy.read_text() == DOCKERFILE

"""What pyproject.toml says: the wheel has all that the programs read, the locks what they import."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from k8s.tools import image_tree
from tests.conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PACKAGES = ("protos", "serving", "training")
# The extras that each lock is for, as `make lock` compiles it.
EXTRAS = {
    "dev": ("model-server", "train", "traces", "dev"),
    "serve": ("model-server", "train"),
    "gateway": ("traces",),
    "model-server": ("model-server",),
    "training-gpu": ("train", "gpu"),
}


def run(*command: str | Path, **environment: str) -> str:
    """The output of a command, which must succeed."""
    done = subprocess.run(
        command, env=os.environ | environment, cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    image_tree.stage_sources(folder / "sources")
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index")
    run(*pip, "--wheel-dir", folder, folder / "sources")
    (made,) = folder.glob("*.whl")
    return made


def test_the_wheel_has_every_file_of_the_packages_and_no_other(wheel: Path) -> None:
    there = {
        str(path.relative_to(REPOSITORY))
        for package in PACKAGES
        for path in (REPOSITORY / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"serving/samples/seven.png", "serving/page/static/index.html", "protos/sluice.binpb"} <= there
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == there


def test_what_is_installed_from_the_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", tmp_path, wheel)
    installed = {"PYTHONPATH": str(tmp_path)}
    asked = "import serving; from serving.page import assets; print(serving.__file__, *assets.ASSETS)"
    said = run(sys.executable, "-c", asked, **installed)
    assert said.startswith(f"{tmp_path}/serving/")
    assert "main.js" in said
    assert "plan-capacity" in run(tmp_path / "bin" / "sluice", "--help", **installed)
    assert "sequential" in run(tmp_path / "bin" / "sluice", "recipes", **installed)


def locked(lock: str) -> dict[str, str]:
    """The version of each package in a lock."""
    text = (REPOSITORY / "requirements" / f"{lock}.txt").read_text()
    pins = re.findall(r"^([\w.-]+)(?:\[[^\]]*\])?==([^\s;]+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pins}


@pytest.mark.parametrize("lock", EXTRAS)
def test_a_lock_has_what_the_project_asks_for_in_the_versions_of_all(lock: str) -> None:
    asked = list(PROJECT["project"]["dependencies"])
    for extra in EXTRAS[lock]:
        asked += PROJECT["project"]["optional-dependencies"][extra]
    pins = locked(lock)
    for requirement in map(Requirement, asked):
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not in it: run `make lock`"
        assert requirement.specifier.contains(version, prereleases=True), requirement
    everywhere = locked("dev")
    assert {name: pin for name, pin in pins.items() if everywhere.get(name, pin) != pin} == {}


def test_what_is_imported_is_asked_for_and_not_only_brought_along() -> None:
    wanted = [*PROJECT["project"]["dependencies"]]
    for extra in ("model-server", "train", "traces"):
        wanted += PROJECT["project"]["optional-dependencies"][extra]
    asked = {canonicalize_name(Requirement(each).name) for each in wanted}
    providers = packages_distributions()
    files = {file for package in PACKAGES for file in (REPOSITORY / package).rglob("*.py")}
    files.remove(REPOSITORY / "protos/generate.py")  # a tool of developers
    imported = {name for file in files for name in _imported(file)} - sys.stdlib_module_names - {*PACKAGES}
    assert {"fastapi", "tensorflow", "starlette"} <= imported
    missing = [
        name for name in sorted(imported) if not asked & {canonicalize_name(each) for each in providers[name]}
    ]
    assert not missing


def _imported(file: Path) -> Iterator[str]:
    """The first part of each module that a file imports."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (each.name.partition(".")[0] for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]

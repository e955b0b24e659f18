"""`sluice publish --import`: models with classes of the user's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from training.errors import BadInput
from training.user_modules import import_all

LAYERS = """
import keras

@keras.saving.register_keras_serializable("garden")
class Brighten(keras.layers.Layer):
    def __init__(self, by=1.0, **kwargs):
        super().__init__(**kwargs)
        self.by = by

    def call(self, images):
        return images * self.by

    def get_config(self):
        return super().get_config() | {"by": self.by}

@keras.saving.register_keras_serializable("garden")
def doubled(scores):
    return keras.ops.softmax(2.0 * scores)
"""
SAVE = """
import keras
from my_layers import Brighten, doubled

shape = keras.Input((4, 4, 3))
scores = keras.layers.Dense(2, activation=doubled)(keras.layers.Flatten()(Brighten(0.5)(shape)))
keras.Model(shape, scores).save("flowers.keras")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, from which modules are imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (tmp_path / "my_layers.py").write_text(LAYERS)
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program in the folder; like an installed one, it does not look for modules there."""
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_model_with_classes_of_ones_own_is_published(folder: Path) -> None:
    saved = run(folder, "-c", f"import sys; sys.path.insert(0, '')\n{SAVE}")
    assert saved.returncode == 0, saved.stderr
    publish = ["-m", "serving", "publish", "flowers.keras"]
    refused = run(folder, *publish)
    assert refused.returncode == 2
    assert (
        "which is not registered here; name the module that registers it (`--import MODULE`)"
        in refused.stderr
    )
    assert not (folder / "models").exists()
    done = run(folder, *publish, "--import", "my_layers")
    assert done.returncode == 0, done.stderr
    card = json.loads((folder / "models/flowers/1/assets.extra/card.json").read_text())
    assert card["task"] == "image-classification"
    assert card["labels"] == ["0", "1"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none_such", "", "there is no module none_such, neither in the working directory nor on PYTHONPATH"),
        ("my_layers.deep", "", "there is no module my_layers.deep, neither in"),
        ("my_layers.py", "", "it takes a module's name, such as my_layers for my_layers.py, and not a path"),
        ("./my_layers", "", "it takes a module's name, such as my_layers for my_layers.py, and not a path"),
        ("broken_one", "1 / 0", "importing it failed: ZeroDivisionError: division by zero"),
        ("broken_two", "def", "importing it failed: SyntaxError: "),
        (
            "broken_three",
            "import no_such_dependency",
            "importing it failed: ModuleNotFoundError: No module named",
        ),
        ("broken_four", "raise SystemExit(3)", "importing it failed: SystemExit: 3"),
        ("", "", "importing it failed: ValueError: Empty module name"),
    ],
)
def test_what_cannot_be_imported_is_told(folder: Path, name: str, text: str, message: str) -> None:
    if text:
        (folder / f"{name}.py").write_text(text)
    with pytest.raises(BadInput) as caught:
        import_all([name])
    assert str(caught.value).startswith(f"--import {name}: {message}")


def test_the_working_directory_comes_before_what_is_installed(folder: Path) -> None:
    (folder / "tests_of_user_modules.py").write_text("import sys; sys.found_here = True")
    import_all(["tests_of_user_modules"])
    assert sys.path[0] == str(folder)
    del sys.modules["tests_of_user_modules"]

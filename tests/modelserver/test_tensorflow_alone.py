"""The model server's process has TensorFlow, and not what TensorFlow would bring along."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import REPOSITORY
from tests.modelserver.process import IS_OURS, ServerProcess


@pytest.mark.skipif(not IS_OURS, reason="of Sluice's own")
def test_a_server_has_no_keras_nor_what_keras_imports(server: ServerProcess) -> None:
    mapped = [entry.path for entry in psutil.Process(server.process.pid).memory_maps()]
    assert any("/tensorflow/" in path for path in mapped)
    # Keras itself has no libraries; those that it imports if they are installed have.
    assert [path for path in mapped if "/sklearn/" in path or "/matplotlib/" in path] == []


@pytest.mark.parametrize(("before", "seen"), [("", "no keras\nkeras\n"), ("import keras; ", "keras\n")])
def test_keras_is_kept_away_from_tensorflow_alone(before: str, seen: str, tmp_path: Path) -> None:
    """And from it only where it comes first: who has Keras keeps it, and who wants it gets it."""
    (tmp_path / "tensorflow.py").write_text(
        "try:\n    import keras\nexcept ImportError:\n    print('no keras')\n"
    )
    (tmp_path / "keras.py").write_text("print('keras')\n")
    program = "from serving.modelserver.tensorflow_alone import import_tensorflow_alone as alone"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}; {before}alone(); import keras"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == seen

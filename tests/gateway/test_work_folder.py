"""The folder of a running installation: its own while it runs, and gone with the next start at the latest."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from serving.processes.work_folder import work_folder


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)  # where it is kept once it has been found
    return tmp_path


def killed_within(parent: Path) -> None:
    """Run a program that is killed while it has a folder with something in it."""
    program = (
        "import os, signal\n"
        "from serving.processes.work_folder import work_folder\n"
        "with work_folder() as folder:\n"
        "    (folder / 'models.config').write_text('x')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    before = set(parent.iterdir())
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode < 0
    assert len(set(parent.iterdir()) - before) == 1


def test_it_is_of_its_user_alone_and_gone_in_the_end(parent: Path) -> None:
    with work_folder() as folder:
        (folder / "socket").touch()
        assert folder.parent == parent
        assert folder.stat().st_mode & 0o777 == 0o700
    assert list(parent.iterdir()) == []


def test_what_a_killed_process_left_is_cleared_away_by_the_next_one(parent: Path) -> None:
    for _ in range(2):
        killed_within(parent)
    with work_folder() as folder:
        assert list(parent.iterdir()) == [folder]


def test_those_of_processes_that_run_are_left_alone(parent: Path) -> None:
    with work_folder() as first, work_folder() as second:
        killed_within(parent)
        with work_folder() as third:
            assert set(parent.iterdir()) == {first, second, third}
        (first / "still-there").touch()
    assert list(parent.iterdir()) == []


def test_folders_of_others_that_are_called_alike_are_left_alone(parent: Path) -> None:
    """Somebody keeps models in /tmp/sluice-models; and a link leads out of there."""
    (parent / "sluice-models" / "digits").mkdir(parents=True)
    (parent / "sluice-file").touch()
    elsewhere = parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "owner.lock").touch()
    (parent / "sluice-link").symlink_to(elsewhere)
    before = set(parent.iterdir())
    with work_folder():
        pass
    assert set(parent.iterdir()) == before
    assert (elsewhere / "owner.lock").exists()

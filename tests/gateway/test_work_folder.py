"""The folder of a running installation: its own while it runs, and gone with the next start at the latest."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

import pytest

from serving.errors import FailedPrecondition
from serving.processes.work_folder import kept, work_folder


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


def test_one_that_a_child_holds_outlives_its_owner_until_the_child_ends(parent: Path) -> None:
    held = "with kept(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    imports = "import sys; from pathlib import Path; from serving.processes.work_folder import kept"
    program = (
        "import os, signal, subprocess, sys\n"
        "from serving.processes.work_folder import work_folder\n"
        "with work_folder() as folder:\n"
        f"    child = [sys.executable, '-c', {imports!r} + chr(10) + {held!r}, str(folder)]\n"
        "    print(subprocess.Popen(child, stdout=subprocess.PIPE).stdout.readline(), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdin is not None
    with owner.stdin:
        assert owner.wait() == -signal.SIGKILL
        (folder,) = parent.iterdir()
        with work_folder():
            assert folder.is_dir()
    assert owner.stdout is not None
    with owner.stdout, (folder / "owner.lock").open() as lock:
        assert "held" in owner.stdout.readline()
        fcntl.flock(lock, fcntl.LOCK_EX)  # which comes when the child has ended
    with work_folder() as mine:
        assert list(parent.iterdir()) == [mine]


def test_one_that_another_start_takes_for_a_left_one_is_made_anew(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its making and its lock it has none."""
    taken: list[Path] = []

    def after_another_start(lock: IO[str], _operation: int) -> None:
        if not taken:
            taken.append(Path(lock.name).parent)
            shutil.rmtree(taken[0])

    monkeypatch.setattr(fcntl, "flock", after_another_start)
    with work_folder() as folder:
        assert folder not in taken
        assert list(parent.iterdir()) == [folder]
    assert len(taken) == 1


def test_one_that_is_gone_cannot_be_held(parent: Path) -> None:
    with work_folder() as folder:
        pass
    with pytest.raises(FailedPrecondition, match="has been removed"), kept(folder):
        pass


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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of another user")
def test_the_folder_of_another_user_is_left_alone(parent: Path) -> None:
    theirs = parent / "sluice-theirs"
    theirs.mkdir()
    (theirs / "owner.lock").touch()
    os.chown(theirs, 65534, 65534)
    with work_folder():
        pass
    assert theirs.is_dir()

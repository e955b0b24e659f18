"""Version folders appear whole, under numbers of their own, or not at all. No TensorFlow here."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from training.errors import BadInput, PublishFailed
from training.publish import publish, remove_leftovers, versions

PUBLISHER = """
import sys
from pathlib import Path
from training.publish import publish

def write(folder, version):
    (folder / "assets.extra").mkdir()
    (folder / "saved_model.pb").write_text(f"{sys.argv[2]} {version}")

for _ in range(int(sys.argv[3])):
    print(publish(Path(sys.argv[1]), write)[1], flush=True)
"""

STUCK = """
import sys, time
from pathlib import Path
from training.publish import publish

def write(folder, version):
    (folder / "saved_model.pb").write_text("half of it")
    print("writing", flush=True)
    sys.stdin.readline()

print(publish(Path(sys.argv[1]), write)[1], flush=True)
"""

FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from training.errors import PublishFailed
from training.publish import publish

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    publish(Path(sys.argv[1]), lambda folder, version: (folder / "saved_model.pb").write_bytes(bytes(5000)))
except PublishFailed as error:
    print(error)
"""


def write_file(folder: Path, version: int) -> None:
    (folder / "saved_model.pb").write_text(str(version))


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def test_numbers_go_on_from_the_highest(tmp_path: Path) -> None:
    model = tmp_path / "m"
    assert publish(model, write_file) == (model / "1", 1)
    (model / "7").mkdir()
    (model / "notes").mkdir()
    assert publish(model, write_file) == (model / "8", 8)
    assert (model / "8" / "saved_model.pb").read_text() == "8"
    assert versions(model) == [1, 7, 8]


def test_an_existing_version_is_not_touched(tmp_path: Path) -> None:
    model = tmp_path / "m"

    def beaten_to_it(folder: Path, version: int) -> None:
        if version == 1:  # somebody copies a version 1 by hand while this one is written
            (model / "1").mkdir()
            (model / "1" / "saved_model.pb").write_text("theirs")
        write_file(folder, version)

    assert publish(model, beaten_to_it) == (model / "2", 2)
    assert (model / "1" / "saved_model.pb").read_text() == "theirs"
    assert sorted(entry.name for entry in model.iterdir()) == ["1", "2"]


def test_publishers_at_once_never_collide(tmp_path: Path) -> None:
    model = tmp_path / "m"
    publishers = [start(PUBLISHER, str(model), f"p{number}", "5") for number in range(4)]
    outputs = [process.communicate(timeout=60)[0].split() for process in publishers]
    assert all(process.returncode == 0 for process in publishers)
    claimed = [int(version) for output in outputs for version in output]
    assert len(claimed) == 20
    assert sorted(claimed) == versions(model)
    for number, output in enumerate(outputs):
        for version in output:
            assert (model / version / "saved_model.pb").read_text() == f"p{number} {version}"
    assert [entry.name for entry in model.iterdir() if not entry.name.isdecimal()] == []


def test_a_crash_leaves_nothing_that_is_a_version(tmp_path: Path) -> None:
    model = tmp_path / "m"
    publish(model, write_file)
    dying = start(STUCK, str(model))
    assert dying.stdout is not None
    assert dying.stdout.readline() == "writing\n"
    alive = start(STUCK, str(model))
    assert alive.stdout is not None
    assert alive.stdout.readline() == "writing\n"
    dying.send_signal(signal.SIGKILL)
    dying.wait(timeout=30)
    assert versions(model) == [1]
    assert len(list(model.glob(".publishing-*"))) == 2

    assert publish(model, write_file)[1] == 2  # the dead one's folder is gone, and its number free again
    assert [entry.name for entry in model.glob(".publishing-*")] == [".publishing-3"]
    out, _ = alive.communicate("\n", timeout=30)
    assert out == "3\n"
    assert versions(model) == [1, 2, 3]
    assert list(model.glob(".publishing-*")) == []


def test_leftovers_of_the_living_stay(tmp_path: Path) -> None:
    (tmp_path / ".publishing-4").mkdir()
    assert remove_leftovers(tmp_path) == [tmp_path / ".publishing-4"]

    def look(folder: Path, version: int) -> None:
        assert remove_leftovers(tmp_path) == []
        write_file(folder, version)

    assert publish(tmp_path, look)[1] == 1


def test_a_failing_writer_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path, version: int) -> None:
        write_file(folder, version)
        raise PublishFailed("no")

    (tmp_path / "empty").mkdir()
    for model in (tmp_path / "models" / "m", tmp_path / "empty"):
        with pytest.raises(PublishFailed, match="no"):
            publish(model, fail)
    assert [*tmp_path.rglob("*")] == [tmp_path / "empty"], "what was there before stays"


def test_a_first_version_that_fails_takes_no_folder_from_another_publisher(tmp_path: Path) -> None:
    model = tmp_path / "m"

    def outlived(folder: Path, version: int) -> None:
        def fail(folder: Path, version: int) -> None:
            raise PublishFailed("no")

        with pytest.raises(PublishFailed):
            publish(model, fail)
        write_file(folder, version)

    assert publish(model, outlived) == (model / "1", 1)


def test_all_of_a_version_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a machine that loses its power might come back with a version that is cut short."""
    model = tmp_path / "m"
    synced: dict[bool, set[str]] = {False: set(), True: set()}
    fsync = os.fsync

    def noting(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced[(model / "1").exists()].add(path.relative_to(model).as_posix())
        fsync(descriptor)

    def write(folder: Path, version: int) -> None:
        (folder / "assets.extra").mkdir()
        (folder / "assets.extra" / "card.json").write_text("{}")
        write_file(folder, version)

    monkeypatch.setattr(os, "fsync", noting)
    publish(model, write)
    below = ("", "/saved_model.pb", "/assets.extra", "/assets.extra/card.json")
    assert synced == {False: {f".publishing-1{name}" for name in below}, True: {"."}}


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    process = start(FULL_DISK, str(tmp_path / "m"))
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.startswith("nothing was published in ")
    assert "File too large" in out
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("")
    with pytest.raises(PublishFailed, match=r"nothing was published in .*Not a directory"):
        publish(tmp_path / "models" / "m", write_file)


@pytest.mark.parametrize("name", [".hidden", ""])
def test_a_name_that_cannot_be_a_model(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="is not a valid name for a model"):
        publish(tmp_path / name if name else Path("/"), write_file)

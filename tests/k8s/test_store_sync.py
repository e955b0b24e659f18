"""The script that copies models from a bucket, with a program in rclone's place that reads a folder."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from k8s.tools import check

SCRIPT = check.K8S / "components" / "store-s3" / "sync.sh"
# Lists, and copies file by file in the order of their names; one that is named "broken" ends that, as a
# network does.
RCLONE = """#!/bin/sh
set -eu
case $1 in
    lsf) cd "$BUCKETS" && cd "${6#store:}" && find . -mindepth 1 -maxdepth 3 -type f | sed 's|^./||' ;;
    copy)
        mkdir -p "$4"
        for file in $(ls "$BUCKETS/${3#store:}"); do
            [ "$file" = broken ] && exit 3
            cp "$BUCKETS/${3#store:}/$file" "$4"
        done ;;
esac
"""


@dataclass
class Store:
    """A bucket, the volume that it is copied to, and the script between them."""

    folder: Path

    @property
    def models(self) -> Path:
        return self.folder / "models"

    def upload(self, version: str, *files: str) -> None:
        for file in files:
            path = self.folder / "buckets" / "ours" / version / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["sh", self.folder / "sync.sh", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
                "BUCKETS": str(self.folder / "buckets"),
                "BUCKET": "ours",
            },
        )

    def once(self) -> tuple[int, str]:
        process = self.start("once")
        _, errors = process.communicate(timeout=60)
        return process.returncode, errors

    def copied(self) -> dict[str, set[str]]:
        """The files of each version that a replica would see."""
        versions = [each for each in self.models.glob("*/*") if each.parent.name != ".staging"]
        return {
            str(each.relative_to(self.models)): {file.name for file in each.iterdir()} for each in versions
        }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    for name in ("bin", "models", "buckets/ours"):
        (tmp_path / name).mkdir(parents=True)
    rclone = tmp_path / "bin" / "rclone"
    rclone.write_text(RCLONE)
    rclone.chmod(0o755)
    text = SCRIPT.read_text()
    for path, own in (("/models", tmp_path / "models"), ("/tmp/there", tmp_path / "there")):
        assert f"={path}" in text
        text = text.replace(path, str(own))
    (tmp_path / "sync.sh").write_text(text.replace("sleep 15", "sleep 0.01"))
    return Store(tmp_path)


def test_what_is_whole_in_the_bucket_is_copied_and_nothing_else(store: Store) -> None:
    store.upload("digits/1", "saved_model.pb", "labels.txt")
    store.upload("digits/2", "variables")
    store.upload("digits/notes", "saved_model.pb")
    assert store.once() == (0, "")
    assert store.copied() == {"digits/1": {"saved_model.pb", "labels.txt"}}
    store.upload("digits/2", "saved_model.pb")
    assert store.once() == (0, "")
    assert store.copied()["digits/2"] == {"saved_model.pb", "variables"}


def test_an_init_container_fails_with_its_copy(store: Store) -> None:
    store.upload("digits/1", "saved_model.pb", "a", "broken")
    code, _ = store.once()
    assert code != 0
    assert store.copied() == {}
    (store.folder / "buckets" / "ours").rename(store.folder / "gone")
    code, errors = store.once()
    assert code != 0
    assert "ours" in errors


def test_a_copy_that_breaks_off_is_shown_to_no_replica_and_made_again(store: Store) -> None:
    store.upload("digits/1", "a", "broken", "saved_model.pb")
    store.upload("digits/2", "saved_model.pb")
    process = store.start()
    try:
        assert process.stderr is not None
        assert process.stdout is not None
        assert "copied digits/2\n" in process.stdout
        assert store.copied() == {"digits/2": {"saved_model.pb"}}
        assert process.stderr.readline() == "a round failed; the next is in 15 s\n"
        (store.folder / "buckets" / "ours" / "digits" / "1" / "broken").unlink()
        assert "copied digits/1\n" in process.stdout
        assert store.copied()["digits/1"] == {"a", "saved_model.pb"}
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 0
    finally:
        process.kill()

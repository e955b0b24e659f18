"""`sluice classify`: files, folders, patterns and standard input, in each format."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from pathlib import Path

import pytest

from serving.classify_command import find
from serving.errors import InvalidInput
from tests.doors.conftest import Live
from tests.support.processes import COMMAND


@pytest.fixture
def folder(tmp_path: Path, photograph: bytes) -> Path:
    inner = tmp_path / "pictures" / "inner"
    inner.mkdir(parents=True)
    (inner.parent / "b.png").write_bytes(photograph)
    (inner / "a.PNG").write_bytes(photograph)
    (inner / "bad.jpg").write_bytes(b"no image")
    (inner / "notes.txt").write_text("not looked at")
    return inner.parent


def run(live: Live, *arguments: str, code: int, stdin: bytes = b"") -> str:
    command = [*COMMAND, "classify", *arguments, f"--url={live.http_url}"]
    done = subprocess.run(command, check=False, input=stdin, capture_output=True, timeout=120)
    assert done.returncode == code, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    return (done.stdout if code < 2 else done.stderr).decode()


def test_a_folder_as_json_fails_if_one_file_does(live: Live, folder: Path) -> None:
    lines = [json.loads(line) for line in run(live, str(folder), "--json", code=1).splitlines()]
    assert [Path(line["file"]).name for line in lines] == ["b.png", "a.PNG", "bad.jpg"]
    assert [line.get("classes", [{}])[0].get("label") for line in lines] == [live.label, live.label, None]
    assert lines[2]["error"]["type"] == "bad-image"
    assert lines[0]["version"] == live.version


def test_a_pattern_as_csv(live: Live, folder: Path) -> None:
    text = run(live, str(folder / "*.png"), "--format=csv", "--top-k=2", code=0)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["rank"], row["version"]) for row in rows] == [
        ("1", str(live.version)),
        ("2", str(live.version)),
    ]
    assert rows[0]["label"] == live.label


def test_standard_input_as_a_table(live: Live, photograph: bytes) -> None:
    header, row = run(live, "-", "--model=digits", "--label=stable", code=0, stdin=photograph).splitlines()
    assert header.split() == ["file", "label", "score"]
    assert row.split()[:2] == ["-", live.label]
    assert f"(digits version {live.version})" in row


def test_what_cannot_be_is_said(live: Live, folder: Path, tmp_path: Path) -> None:
    assert "cannot be read: No such file" in run(live, str(folder / "none.png"), code=1)
    assert "error: --version and --label need --model" in run(live, "-", "--version=1", code=2)
    assert "has no image file" in run(live, str(tmp_path / "*.webp"), code=2)
    assert "error: --ca none.pem cannot be used: No such file" in run(live, "-", "--ca=none.pem", code=2)


def test_arguments_stand_for_files(folder: Path, tmp_path: Path) -> None:
    names = [Path(each).name for each in find([str(folder), "-", str(folder / "inner" / "*.jpg"), "x.png"])]
    assert names == ["b.png", "a.PNG", "bad.jpg", "-", "bad.jpg", "x.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="has no image file"):
        list(find([str(tmp_path / "empty")]))

"""`sluice classify`: files, folders, patterns and standard input, in each format."""

from __future__ import annotations

import array
import contextlib
import csv
import fcntl
import io
import json
import os
import pty
import signal
import subprocess
import termios
import time
from pathlib import Path

import psutil
import pytest

from serving.commands.classify import find
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


@pytest.mark.parametrize("output", ["json", "table", "csv"])
def test_what_is_written_to_a_file_gets_there_though_a_bar_is_on_the_terminal(
    live: Live, folder: Path, tmp_path: Path, output: str
) -> None:
    command = [*COMMAND, "classify", str(folder), f"--format={output}", f"--url={live.http_url}"]
    terminal, its_end = pty.openpty()
    with (tmp_path / "answers").open("wb") as answers:
        process = subprocess.Popen(command, stdout=answers, stderr=its_end)
    os.close(its_end)
    shown = b""
    with contextlib.suppress(OSError):  # which tells that the other end is closed
        while piece := os.read(terminal, 65_536):
            shown += piece
    os.close(terminal)
    assert (process.wait(120), b"classifying" in shown) == (1, True)
    written = (tmp_path / "answers").read_text()
    assert all(name in written for name in ("b.png", "a.PNG", "bad.jpg"))


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
    both = ("--model=digits", "--version=1", "--label=stable")
    assert "error: --version and --label are two ways to name a version" in run(live, "-", *both, code=2)
    assert "has no image file" in run(live, str(tmp_path / "*.webp"), code=2)
    assert "error: --ca (SSL_CERT_FILE) none.pem cannot be used: No such file" in run(
        live, "-", "--ca=none.pem", code=2
    )


def test_that_nobody_answers_is_said_once_for_all_files(folder: Path) -> None:
    command = [*COMMAND, "classify", str(folder), "--url=http://127.0.0.1:9", "--json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: no gateway answers at http://127.0.0.1:9: ")
    assert line.endswith("; start one: sluice serve, or pass --url")


def test_a_file_may_have_any_name(live: Live, tmp_path: Path, photograph: bytes) -> None:
    place = os.fsencode(tmp_path) + b"/n\xe9.png"
    Path(os.fsdecode(place)).write_bytes(photograph)
    (line,) = run(live, str(tmp_path), "--json", code=0).splitlines()
    assert os.fsencode(json.loads(line)["file"]) == place
    for output in ("table", "csv"):
        assert "n\\udce9.png" in run(live, str(tmp_path), f"--format={output}", code=0)


def test_a_files_name_does_not_drive_the_terminal(live: Live, tmp_path: Path, photograph: bytes) -> None:
    (tmp_path / "red\x1b[31m\n.png").write_bytes(photograph)
    (tmp_path / "sad\x1b[31m.png").write_bytes(b"no image")
    _, red, sad = run(live, str(tmp_path), code=1).splitlines()
    assert r"red\x1b[31m\n.png  " in red
    assert r"sad\x1b[31m.png  error: " in sad


def test_ctrl_c_ends_it_while_it_reads_standard_input(live: Live) -> None:
    command = [*COMMAND, "classify", "-", f"--url={live.http_url}"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}

    def heed_sigint() -> None:  # which a shell has what it starts in the background ignore
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, preexec_fn=heed_sigint, **pipes) as process:  # type: ignore[call-overload]  # noqa: PLW1509
        process.stdin.write(b"x")
        process.stdin.flush()
        left, running = array.array("i", [1]), psutil.Process(process.pid)
        end = time.monotonic() + 60
        while (left[0] or running.status() != psutil.STATUS_SLEEPING) and time.monotonic() < end:
            fcntl.ioctl(process.stdin, termios.FIONREAD, left)  # until it has read, and waits for more
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(30) == 130
        finally:
            process.kill()


def test_a_reader_who_has_seen_enough_is_no_error(live: Live, folder: Path) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    for arguments in (["classify", str(folder), "--json"], ["models", "--json"], ["models"]):
        command = [*COMMAND, *arguments, f"--url={live.http_url}"]
        done = subprocess.run(command, check=False, stdout=theirs, stderr=subprocess.PIPE, timeout=120)
        assert (done.returncode, done.stderr) == (1, b""), arguments
    os.close(theirs)


@pytest.mark.parametrize(("name", "says"), [("", "a file's name is empty"), ("**.png", "is not a pattern: ")])
def test_names_that_stand_for_nothing_are_refused(name: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        list(find([name]))


def test_a_folder_that_may_not_be_read_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    """It runs in a process of its own, without root's right to read everything if the tests run as root."""
    (tmp_path / "theirs").mkdir(mode=0)
    rights = "-dac_override,-dac_read_search"
    under = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}"] if os.geteuid() == 0 else []
    command = [*under, *COMMAND, "classify", str(tmp_path / "theirs")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, f"error: {tmp_path}/theirs: Permission denied\n")


def test_arguments_stand_for_files(folder: Path, tmp_path: Path) -> None:
    names = [Path(each).name for each in find([str(folder), "-", str(folder / "inner" / "*.jpg"), "x.png"])]
    assert names == ["b.png", "a.PNG", "bad.jpg", "-", "bad.jpg", "x.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="has no image file"):
        list(find([str(tmp_path / "empty")]))


def test_a_folders_images_of_other_kinds_are_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As photographs are that a phone wrote. What macOS notes of each file (`._a.jpg`) is no image."""
    usual = list(find([str(folder)]))
    for name in ("b.HEIC", "a.tif", "._a.jpg", "notes.txt"):
        (folder / name).write_bytes(b"\0\5\x16\7")

    assert list(find([str(folder)])) == usual
    assert capsys.readouterr().err == f"note: 2 images of other kinds in {folder} left out: a.tif, b.HEIC\n"

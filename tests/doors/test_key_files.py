"""Files of API keys: what `sluice keys` writes and says, and what is refused in them."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serving.access.callers import Callers
from serving.access.keys import Keys, hash_of, new_key, read_keys
from serving.commands import keys as keys_command_module
from serving.commands.app import build
from serving.errors import InvalidInput, Unauthenticated
from serving.settings import Settings
from tests.doors.credentials import keys_command


def test_the_file_keeps_hashes_only(key_file: Path) -> None:
    key = keys_command("add", "camera", "--rate=5/second", "--max-concurrent=2", f"--file={key_file}")
    text = key_file.read_text()
    secret = key.split("_", 2)[2]
    assert secret not in text
    assert hash_of(key) in text
    assert key_file.stat().st_mode & 0o077 == 0
    caller = read_keys(text, "x").caller(key)
    assert (caller.name, caller.scopes, caller.max_concurrent) == ("camera", frozenset(["classify"]), 2)
    assert "camera" in keys_command("list", f"--file={key_file}")
    keys_command("add", "camera", f"--file={key_file}", code=1)
    keys_command("revoke", "camera", f"--file={key_file}")
    with pytest.raises(Unauthenticated):
        read_keys(key_file.read_text(), "x").caller(key)
    keys_command("revoke", "camera", f"--file={key_file}", code=1)


@pytest.mark.parametrize(
    "name", ["Kamera Süd", "drone \U0001f680", 'the "new" \\ one', "a\tb\nc", "del\x7f", "[/b]"]
)
def test_a_key_may_have_any_name(key_file: Path, name: str) -> None:
    key = keys_command("add", name, f"--file={key_file}")
    other = keys_command("add", "other", f"--file={key_file}")
    read = read_keys(key_file.read_text("utf-8"), "x")
    assert (read.caller(key).name, read.caller(other).name) == (name, "other")
    assert name.split()[0] in keys_command("list", f"--file={key_file}")
    keys_command("revoke", name, f"--file={key_file}")
    assert len(read_keys(key_file.read_text("utf-8"), "x")) == 1


def test_commands_that_change_a_file_at_once_lose_nothing(
    key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()

    def asking(descriptor: int, operation: int) -> None:
        asked.set()
        fcntl.flock(descriptor, operation)

    monkeypatch.setattr(keys_command_module, "flock", asking)
    folder = os.open(key_file.parent, os.O_RDONLY)
    with ThreadPoolExecutor(1) as pool:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            second = pool.submit(keys_command, "add", "second", f"--file={key_file}")
            assert asked.wait(60)
            _, first = new_key("first", ["classify"])
            key_file.write_text(f'[[keys]]\nid = "{first.id}"\nname = "first"\nhash = "{first.hash}"\n')
        finally:
            os.close(folder)
        second.result()
    assert len(read_keys(key_file.read_text(), "x")) == 2


@pytest.mark.parametrize("arguments", [["add", "a"], ["list"], ["revoke", "a"]])
def test_a_file_of_keys_that_is_no_text_is_told_and_stays(key_file: Path, arguments: list[str]) -> None:
    key_file.write_bytes(b"# n\xe9\n")
    assert "is not UTF-8" in keys_command(*arguments, f"--file={key_file}", code=2)
    assert key_file.read_bytes() == b"# n\xe9\n"
    with pytest.raises(InvalidInput, match=r"keys\.toml is not UTF-8"):
        Callers.from_settings(Settings(keys_file=key_file))


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["add", "a", "--rate=often"], 2, 'error: rate: "often" is not a rate; write one like "20/second"'),
        (
            ["add", "a", "--scope=all"],
            2,
            "error: scopes[0]: input should be 'classify' or 'admin', got 'all'",
        ),
        (
            ["add", "a", "--file=/nowhere/keys.toml"],
            2,
            "error: there is no folder /nowhere to write keys.toml",
        ),
        (
            ["list", "--file=/nowhere/keys.toml"],
            1,
            "error: there is no file /nowhere/keys.toml; `sluice keys",
        ),
        (["add", "half \udcff"], 2, "error: name: input should be a valid string"),
        (["revoke", "a"], 1, "error: there is no file"),
        (["revoke", "a", "--file=/nowhere/keys.toml"], 2, "error: there is no folder /nowhere to write"),
    ],
)
def test_what_keys_cannot_do_is_said(arguments: list[str], code: int, says: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        build(), ["keys", *arguments], env={"SLUICE_KEYS_FILE": str(tmp_path / "k.toml")}
    )
    assert (result.exit_code, result.stderr[: len(says)]) == (code, says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("keys = 3", "keys: input should be a valid list"),
        ("[[keys]", "is not TOML"),
        ('[[keys]]\nid="12345678"\nname="a"\nhash="s3cret"', "keys[0].hash"),
        ('[[keys]]\nid="123456789"\nname="a"\nhash="sha256:%s"' % ("0" * 64), "keys[0].id"),
        ('[[keys]]\nid="12345678"\nname="a"\nhash="sha256:%s"' % ("0" * 65), "keys[0].hash"),
        ('[[keys]]\nid="12345678"\nname="a"\nhash="sha256:%s\u00e9"' % ("0" * 64), "keys[0].hash"),
        ('[[keys]]\nid="12345678"\nname="a"\nhash=" sha256:%s"' % ("0" * 64), "keys[0].hash"),
        ('[[keys]]\nid="12345678"\nname="a"\nhash="sha256:%s"\nrate="often"' % ("0" * 64), "is not a rate"),
        (
            '[[keys]]\nid="12345678"\nname="a"\nhash="sha256:%s"\nrate="0/second"' % ("0" * 64),
            "is not a rate",
        ),
        (
            '[[keys]]\nid="12345678"\nname="a"\nhash="sha256:%s"\nrate="5/second; 9/hour"' % ("0" * 64),
            '"5/second; 9/hour" is not a rate',
        ),
        ('[[keys]]\nid="12345678"\nname="a"\nhash="sha256:%s"\nscopes=["all"]' % ("0" * 64), "scopes"),
        ('[[keys]]\nid="12345678"\nname="a"\nhash="sha256:%s"\n' % ("0" * 64) * 2, "more than once"),
    ],
)
def test_a_bad_file_is_refused_and_never_quoted(text: str, says: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_keys(text, "keys.toml")
    assert says in refused.value.message
    assert "keys.toml" in refused.value.message
    assert "s3cret" not in refused.value.message


def test_wrong_keys_get_one_text_and_about_one_time() -> None:
    key, entry = new_key("a", ["classify"])
    revoked, _ = new_key("b", ["classify"])
    keys = Keys({entry.id: entry})
    wrong = [
        revoked,
        key[:-1] + ("A" if key[-1] != "A" else "B"),
        "",
        "nonsense",
        f"other_{key}",
        key.upper(),
    ]
    texts = set()
    for each in wrong:
        with pytest.raises(Unauthenticated) as refused:
            keys.caller(each)
        texts.add(refused.value.message)
    assert len(texts) == 1

    def seconds(candidate: str) -> float:
        best = 1.0
        for _ in range(300):
            started = time.perf_counter()
            with pytest.raises(Unauthenticated):
                keys.caller(candidate)
            best = min(best, time.perf_counter() - started)
        return best

    # The work is one hash and one comparison either way: a lookup that ended early would take a third.
    assert 0.5 < seconds(wrong[1]) / seconds(revoked) < 2

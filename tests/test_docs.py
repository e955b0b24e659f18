"""README and docs/ name only what there is: commands and their flags, settings, metrics, targets, links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from k8s.tools import metric_names
from serving.commands.app import build
from serving.settings import Settings
from tests.conftest import REPOSITORY

DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
# Variables that are read by the commands, and by these tests.
OTHER_VARIABLES = {"API_KEY", "URL", "TEST_DATA"}

_BLOCK = re.compile(r"^[ ]*```\w*\n(.*?)^[ ]*```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")


def lines_of(text: str) -> Iterator[tuple[str, bool]]:
    """What stands as code in a document, and whether it is in a block of its own."""
    for block in _BLOCK.findall(text):
        for line in block.splitlines():
            yield line.partition("  #")[0].strip(), True
    for inline in _INLINE.findall(_BLOCK.sub("", text)):
        yield inline, False


def invocations(program: str, text: str) -> list[tuple[list[str], bool]]:
    """The arguments of each invocation of a program, without the text's `…`, and whether it is a block's."""
    pattern = re.compile(rf"(?:^|-- )(?:\w+=\S+ )*{program} (?P<arguments>.+)$")
    found = ((pattern.search(line), is_whole) for line, is_whole in lines_of(text))
    return [
        (shlex.split(match["arguments"].replace("…", "")), is_whole) for match, is_whole in found if match
    ]


def headings(path: Path) -> set[str]:
    """What links to parts of a document call them."""
    found = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in found}


def fault_of(arguments: list[str], *, is_whole: bool) -> str:
    """What `sluice` would say of these arguments; what is named within a sentence may lack some."""
    command: Any = typer.main.get_command(build())
    name = "sluice"
    while arguments and (commands := getattr(command, "commands", None)):
        name, *arguments = arguments
        if name not in commands:
            return f"there is no command {name}"
        command = commands[name]
    try:
        command.make_context(name, list(arguments))
    except Exception as error:  # typer carries a click of its own, with its own classes
        options = {option for parameter in command.params for option in parameter.opts}
        given = {each.partition("=")[0] for each in arguments if each.startswith("--")}
        return "" if given <= options and not is_whole else f"{type(error).__name__} {error}"
    return ""


def test_every_command_line_is_one_that_sluice_takes() -> None:
    given = [each for path in DOCUMENTS for each in invocations("sluice", path.read_text())]
    assert len(given) > 40
    assert sum(is_whole for _, is_whole in given) > 20
    for arguments, is_whole in given:
        if arguments[0] != "model-server":  # it has a parser of its own
            assert fault_of(arguments, is_whole=is_whole) == "", arguments


def test_a_command_line_that_sluice_does_not_take_would_be_found() -> None:
    for line in ("rollout start digits --too 2", "rollout began digits", "keys add", "serve digits"):
        assert fault_of(line.split(), is_whole=True), line
    assert fault_of(["keys", "add"], is_whole=False) == ""
    assert fault_of(["keys", "add", "--rat"], is_whole=False)


def test_every_target_of_make_is_there_with_a_word_of_help() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = {arguments[0] for path in DOCUMENTS for arguments, _ in invocations("make", path.read_text())}
    assert len(targets) >= 8
    for target in targets:
        assert re.search(rf"^{target}:.*## \S", makefile, re.MULTILINE), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_setting_and_metric_is_there(path: Path) -> None:
    text = path.read_text()
    settings = set(re.findall(r"SLUICE_(\w+)", text)) - OTHER_VARIABLES
    assert {name.lower() for name in settings} <= Settings.model_fields.keys()
    exported = metric_names.exported()
    metrics = set(re.findall(r"\bsluice_\w+", text))
    assert [each for each in metrics if each not in exported and f"{each}_bucket" not in exported] == []
    assert settings | metrics, "where none is named this test says nothing"


def test_links_lead_somewhere() -> None:
    links = [(path, link) for path in DOCUMENTS for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text())]
    own = [(path, link) for path, link in links if not link.startswith("https://")]
    assert len(own) > 20
    for path, link in own:
        file, _, part = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), f"{path.name}: {link}"
        assert not part or part in headings(target), f"{path.name}: {link}"

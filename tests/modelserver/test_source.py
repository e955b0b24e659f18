"""Which versions a policy wants of those that a folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving import protos
from serving.modelserver import source
from serving.modelserver.config import ModelEntry


def policy(**choice: Any) -> Any:
    return protos.ModelConfig(model_version_policy=choice).model_version_policy


def test_policies_choose_versions() -> None:
    folders = source.by_version(["1", "abc", "0003", "12", "-4", ".5.part", "7x", "99999999999999999999"])
    assert folders == {1: "1", 3: "0003", 12: "12"}
    assert source.choose(policy(), folders) == [12]
    assert source.choose(policy(latest={"num_versions": 2}), folders) == [12, 3]
    assert source.choose(policy(all={}), folders) == [12, 3, 1]
    assert source.choose(policy(specific={"versions": [3, 4]}), folders) == [3]


def test_a_version_is_a_number_that_the_messages_can_hold() -> None:
    largest = 2**63 - 1
    assert source.by_version([str(largest), str(largest + 1)]) == {largest: str(largest)}


@pytest.mark.parametrize(
    ("names", "choice", "found", "said"),
    [
        (
            None,
            {},
            None,
            "Could not find base path {base} for servable m with error No such file or directory",
        ),
        ([], {}, set(), "No versions of servable m found under base path {base}."),
        (["one"], {}, set(), "No versions of servable m found under base path {base}."),
        (
            ["1"],
            {"specific": {"versions": [1, 2]}},
            {1},
            "Version 2, which the version policy asks for, was not",
        ),
        (["1", "2"], {"specific": {"versions": [1, 2]}}, {1, 2}, ""),
        (["1"], {}, {1}, ""),
    ],
)
def test_what_is_missing_in_a_models_folder_is_said(
    names: list[str] | None,
    choice: dict[str, Any],
    found: set[int] | None,
    said: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = tmp_path / "m"
    for name in names or ():
        (base / name).mkdir(parents=True)
    if names is not None:
        base.mkdir(exist_ok=True)
    looked = source.look(ModelEntry("m", base, policy(**choice), {}))
    assert (None if looked is None else set(looked)) == found
    assert [said.format(base=base) in record.getMessage() for record in caplog.records] == [True] * bool(said)

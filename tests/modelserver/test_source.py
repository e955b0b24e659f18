"""Which versions a policy wants of those that a folder holds."""

from __future__ import annotations

from typing import Any

from serving import protos
from serving.modelserver import source


def policy(**choice: Any) -> Any:
    return protos.ModelConfig(model_version_policy=choice).model_version_policy


def test_policies_choose_versions() -> None:
    folders = source.by_version(["1", "abc", "0003", "12", "-4", ".5.part", "7x", "99999999999999999999"])
    assert folders == {1: "1", 3: "0003", 12: "12"}
    assert source.choose(policy(), folders) == [12]
    assert source.choose(policy(latest={"num_versions": 2}), folders) == [12, 3]
    assert source.choose(policy(all={}), folders) == [12, 3, 1]
    assert source.choose(policy(specific={"versions": [3, 4]}), folders) == [3]

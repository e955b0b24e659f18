"""What a gateway is in front of, as other processes are told of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serving.errors import Unavailable
from serving.processes.upstream import ConfigFile, Upstream, absolute, model_config


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the gateway was started."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ("s3://bucket/models/", "s3://bucket/models"),
        ("/srv/old/../models/", "/srv/models"),
        ("models", "{here}/models"),
        (Path("models"), "{here}/models"),
    ],
)
def test_replicas_are_told_of_a_folder_by_its_whole_path_and_of_a_bucket_by_its_url(
    named: str | Path, found: str, here: Path
) -> None:
    assert absolute(named) == found.format(here=here)


def test_a_config_names_whole_paths_since_a_model_server_takes_no_others(here: Path) -> None:
    config = model_config(Path("models"), ["digits", "numbers"])
    found = [(each.name, each.base_path, each.model_platform) for each in config.model_config_list.config]
    assert found == [(name, f"{here}/models/{name}", "tensorflow") for name in ("digits", "numbers")]


def test_a_config_that_cannot_be_written_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "models.config"
    path.mkdir()
    with pytest.raises(Unavailable, match=r"models\.config cannot be written: Is a directory"):
        ConfigFile(path, tmp_path).write_models(["digits"])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("config", [None, ConfigFile(Path("/run/models.config"), Path("/models"))])
def test_a_worker_is_in_front_of_what_its_parent_is(config: ConfigFile | None) -> None:
    upstream = Upstream(("a:1", "b:2"), ("digits",), "/models", config)
    assert Upstream.from_json(json.loads(json.dumps(upstream.as_json()))) == upstream

"""What a configuration may be, and may follow: the original's checks and texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import pytest

from serving import protos
from serving.modelserver import config as configs
from serving.modelserver.core import ServerCore
from serving.modelserver.manager import ModelManager, RetryPolicy
from serving.modelserver.status import Code, StatusError, not_found
from tests.modelserver.conftest import config_of
from tests.modelserver.managed import AVAILABLE, LOADING

CUSTOM = protos.ModelServerConfig(custom_model_config={"type_url": "type.googleapis.com/x"})
NOTHING = protos.ModelServerConfig()
TENSORFLOW, OTHER = 1, 2  # `ModelType`, the old way to name a platform


def model(**fields: Any) -> Any:
    return protos.ModelConfig(**({"name": "m", "base_path": "/m"} | fields))


def listed(*models: Any) -> Any:
    return protos.ModelServerConfig(model_config_list={"config": models})


def no_saved_model(name: str, version: int, path: Path) -> NoReturn:
    raise not_found(f"no SavedModel in {path}")


def test_a_platform_is_named_in_the_old_way_or_the_new() -> None:
    for named in (model(model_platform="tensorflow"), model(model_type=TENSORFLOW)):
        assert configs.platform_of(named) == "tensorflow"
        assert configs.entries(listed(named)).keys() == {"m"}
    configs.validate(listed(model(model_type=TENSORFLOW)), listed(model(model_platform="tensorflow")))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "Illegal setting neither ModelServerConfig::model_type (deprecated) nor"),
        ({"model_type": TENSORFLOW, "model_platform": "tensorflow"}, "Illegal setting both"),
        ({"model_type": OTHER}, "ModelServerConfig::model_type choice 2 not supported."),
        ({"model_platform": "caffe"}, "requests unsupported platform caffe"),
    ],
)
def test_a_model_without_a_platform_that_is_served_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(StatusError) as caught:
        configs.entries(listed(model(**fields)))
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert text in caught.value.message


@pytest.mark.parametrize(
    ("new", "old", "code", "text"),
    [
        (CUSTOM, None, Code.INVALID_ARGUMENT, "does not yet support custom model config"),
        (CUSTOM, listed(), Code.FAILED_PRECONDITION, "from one ModelConfigList to another"),
        (NOTHING, listed(), Code.FAILED_PRECONDITION, "from one ModelConfigList to another"),
    ],
)
def test_a_config_is_a_list_of_models(new: Any, old: Any, code: Code, text: str) -> None:
    with pytest.raises(StatusError) as caught:
        configs.validate(new, old)
    assert caught.value.code is code
    assert text in caught.value.message


@pytest.mark.parametrize("fields", [{}, {"model_platform": "caffe"}])
def test_a_config_without_a_platform_that_is_served_does_not_stand_in_the_way_of_the_next(
    fields: dict[str, str], tmp_path: Path
) -> None:
    manager = ModelManager(no_saved_model, RetryPolicy(0, 0.0), 1)
    core = ServerCore(manager)
    with pytest.raises(StatusError):
        core.reload(listed(model(base_path=str(tmp_path), **fields)))
    core.reload(config_of({"name": "m", "base_path": str(tmp_path)}), is_waiting=False)
    assert manager.close(10)


def test_nothing_to_serve_yet_is_no_config_and_the_first_may_follow(tmp_path: Path) -> None:
    manager = ModelManager(no_saved_model, RetryPolicy(0, 0.0), 1)
    core = ServerCore(manager, poll_wait_s=0)
    configs.validate(NOTHING, None)
    core.reload(NOTHING)
    (tmp_path / "1").mkdir()
    core.reload(config_of({"name": "m", "base_path": str(tmp_path)}), is_waiting=False)
    assert manager.states("m").keys() == {1}  # folders are looked at for the first config only
    with pytest.raises(StatusError, match="from one ModelConfigList to another"):
        core.reload(NOTHING)
    assert manager.close(10)


def test_a_file_that_is_no_text_proto_is_named(tmp_path: Path) -> None:
    path = tmp_path / "models.config"
    for content, code, text in (
        (None, Code.NOT_FOUND, f"{path}; No such file or directory"),
        (b"\xff", Code.INVALID_ARGUMENT, f"Invalid protobuf file: '{path}': not UTF-8 text"),
        (b"nonsense: 1", Code.INVALID_ARGUMENT, f"Invalid protobuf file: '{path}': 1:1 : "),
    ):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(StatusError) as caught:
            configs.read_text_proto(str(path), protos.ModelServerConfig())
        assert caught.value.code is code
        assert text in caught.value.message
    path.write_text('model_config_list { config { name: "é" } }', encoding="utf-8")
    read = configs.read_text_proto(str(path), protos.ModelServerConfig())
    assert read.model_config_list.config[0].name == "é"


def labelled(**labels: int) -> Any:
    return config_of({"name": "m", "base_path": "/m", "version_labels": labels})


@pytest.mark.parametrize(
    ("labels", "before", "allow", "is_taken"),
    [
        ({"stable": 1}, {}, False, True),
        ({"stable": 2}, {}, False, False),
        ({"stable": 2}, {}, True, True),
        ({"stable": 2}, {"stable": 1}, True, False),  # it points somewhere already
        ({"stable": 2}, {"stable": 2}, True, True),
        ({"stable": 1}, {"stable": 2}, False, True),
        ({}, {"stable": 1}, False, True),
    ],
)
def test_label_rules(labels: dict[str, int], before: dict[str, int], allow: bool, is_taken: bool) -> None:
    states = {"m": {1: AVAILABLE, 2: LOADING}}

    def take() -> configs.LabelMap:
        return configs.labels_after(labelled(**labels), states, {"m": before}, allow_unavailable=allow)

    if is_taken:
        assert take() == ({"m": labels} if labels else {})
    else:
        with pytest.raises(StatusError) as caught:
            take()
        assert caught.value.code is Code.FAILED_PRECONDITION


def test_a_path_that_no_system_takes_is_refused() -> None:
    with pytest.raises(StatusError, match="without NUL characters") as caught:
        configs.validate(config_of({"name": "m", "base_path": "/m\0odels"}), None)
    assert caught.value.code is Code.INVALID_ARGUMENT

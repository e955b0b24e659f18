"""A new config in force: folders looked at, labels moved, models left out, reloads one at a time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from serving import protos
from serving.modelserver.core import ServerCore
from serving.modelserver.manager import ModelManager, RetryPolicy
from serving.modelserver.status import Code, StatusError
from tests.modelserver.conftest import config_of
from tests.modelserver.managed import AVAILABLE, END, Fake
from tests.modelserver.process import until


def versions_of(base: Path, *names: str) -> Any:
    """A config of models, each in a folder of its own name, with all their versions."""
    every: dict[str, Any] = {"all": {}}
    return config_of(
        *({"name": name, "base_path": str(base / name), "model_version_policy": every} for name in names)
    )


@pytest.mark.parametrize(
    ("wait_s", "at_first", "afterwards"), [(5, {1}, {1, 2}), (0, {1}, {1}), (-1, set(), set())]
)
def test_whether_a_new_config_is_a_reason_to_look_at_folders(
    wait_s: int, at_first: set[int], afterwards: set[int], tmp_path: Path
) -> None:
    manager = ModelManager(lambda *_: Fake(), RetryPolicy(0, 0.0), 1)
    core = ServerCore(manager, poll_wait_s=wait_s)
    (tmp_path / "m" / "1").mkdir(parents=True)
    core.reload(versions_of(tmp_path, "m"), is_waiting=False)
    assert set(manager.states("m")) == at_first
    (tmp_path / "m" / "2").mkdir()
    core.reload(versions_of(tmp_path, "m"), is_waiting=False)
    assert set(manager.states("m")) == afterwards
    assert manager.close(10)


@pytest.mark.parametrize("is_tolerant", [False, True])
def test_a_folder_that_is_not_there_holds_up_other_models_unless_that_is_tolerated(
    is_tolerant: bool, tmp_path: Path
) -> None:
    manager = ModelManager(lambda *_: Fake(), RetryPolicy(0, 0.0), 1)
    core = ServerCore(manager, is_tolerant=is_tolerant)
    (tmp_path / "m" / "1").mkdir(parents=True)
    core.reload(versions_of(tmp_path, "m", "late"), is_waiting=False)
    assert set(manager.states("m")) == ({1} if is_tolerant else set())
    (tmp_path / "late" / "7").mkdir(parents=True)
    core.poll()
    assert (set(manager.states("m")), set(manager.states("late"))) == ({1}, {7})
    assert manager.close(10)


def test_a_model_that_is_left_out_goes_and_so_do_its_labels(tmp_path: Path) -> None:
    manager = ModelManager(lambda *_: Fake(), RetryPolicy(0, 0.0), 1)
    core = ServerCore(manager)
    for name in ("m", "n"):
        (tmp_path / name / "1").mkdir(parents=True)
    config = versions_of(tmp_path, "m")
    core.reload(config)
    labels = config.model_config_list.config[0].version_labels
    labels["stable"] = 1
    core.reload(config)
    stable = protos.ModelSpec(name="m", version_label="stable")
    with core.model(stable) as model:
        assert model.version == 1
    labels["next"] = 2
    with pytest.raises(StatusError, match="which is not currently available for inference"):
        core.reload(config)
    core.reload(versions_of(tmp_path, "n"))
    until(lambda: manager.states("m") == {1: END}, "it is gone")
    with pytest.raises(StatusError, match="Unrecognized servable version label: stable"):
        core.model(stable)
    assert manager.close(10)


def test_an_empty_config_is_none_yet(tmp_path: Path) -> None:
    """The first that has models is the first."""
    manager = ModelManager(lambda *_: Fake(), RetryPolicy(0, 0.0), 1)
    core = ServerCore(manager, poll_wait_s=0)
    (tmp_path / "m" / "1").mkdir(parents=True)
    core.reload(protos.ModelServerConfig())
    core.reload(protos.ModelServerConfig())
    core.reload(versions_of(tmp_path, "m"))
    assert manager.states("m") == {1: AVAILABLE}
    assert manager.close(10)


def test_a_config_whose_labels_are_refused_is_the_one_that_the_next_may_not_contradict(
    tmp_path: Path,
) -> None:
    manager = ModelManager(lambda *_: Fake(), RetryPolicy(0, 0.0), 1)
    core = ServerCore(manager)
    for name in ("m", "n"):
        (tmp_path / name / "1").mkdir(parents=True)
    core.reload(versions_of(tmp_path, "m"))
    refused = versions_of(tmp_path, "m", "n")
    refused.model_config_list.config[1].version_labels["stable"] = 1
    with pytest.raises(StatusError, match="which is not currently available for inference"):
        core.reload(refused)
    other = versions_of(tmp_path, "n")
    other.model_config_list.config[0].model_platform = "caffe"
    with pytest.raises(StatusError, match="Illegal to change a model's platform"):
        core.reload(other)
    assert manager.states("n") == {}
    assert manager.close(10)


@pytest.mark.parametrize("wait_s", [0, -1])
def test_that_no_folder_is_looked_at_is_said(
    wait_s: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A new model would be waited for without an end."""
    manager = ModelManager(lambda *_: Fake(), RetryPolicy(0, 0.0), 1)
    core = ServerCore(manager, poll_wait_s=wait_s)
    for _ in range(2):
        core.reload(versions_of(tmp_path, "m"), is_waiting=False)
    told = [line for line in caplog.messages if f"--file_system_poll_wait_seconds={wait_s}" in line]
    assert len(told) == (1 if wait_s == 0 else 2)
    assert manager.close(10)


def test_a_reload_behind_another_is_not_made_once_its_caller_is_gone(tmp_path: Path) -> None:
    manager = ModelManager(lambda *_: Fake(), RetryPolicy(0, 0.0), 1)
    core = ServerCore(manager)
    gives_up, is_waiting = threading.Event(), threading.Event()

    def is_first_cancelled() -> bool:
        is_waiting.set()
        return gives_up.is_set()

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(core.reload, versions_of(tmp_path, "late"), is_first_cancelled)
        assert is_waiting.wait(30)
        (tmp_path / "m" / "1").mkdir(parents=True)
        with pytest.raises(StatusError, match="another reload") as caught:
            core.reload(versions_of(tmp_path, "m"), lambda: True)
        assert caught.value.code is Code.CANCELLED
        gives_up.set()
        with pytest.raises(StatusError, match="new models"):
            first.result(30)
    assert manager.states("m") == {}
    core.reload(versions_of(tmp_path, "m"))
    assert manager.states("m") == {1: AVAILABLE}
    assert manager.close(10)

"""Decisions, as plain functions: what to load and unload, which versions a policy wants, label rules."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import protos
from serving.modelserver import config as configs
from serving.modelserver import source
from serving.modelserver.core import ServerCore
from serving.modelserver.failures import Failures
from serving.modelserver.lifecycle import Load, State, Unload, VersionState, decide
from serving.modelserver.manager import ModelManager, RetryPolicy
from serving.modelserver.signature import Signature
from serving.modelserver.status import Code, StatusError, from_exception
from tests.modelserver.conftest import config_of
from tests.modelserver.process import until

PATHS = {version: Path(f"/m/{version}") for version in range(1, 6)}
NEW, LOADING, AVAILABLE, UNLOADING, END = (
    VersionState(state) for state in (State.START, State.LOADING, State.AVAILABLE, State.UNLOADING, State.END)
)


def wanted(*versions: int) -> dict[int, Path]:
    return {version: PATHS[version] for version in versions}


@pytest.mark.parametrize(
    ("want", "known", "failed", "actions"),
    [
        ([1], {}, [], [Load(1, PATHS[1])]),
        ([1, 2], {}, [], [Load(2, PATHS[2]), Load(1, PATHS[1])]),
        ([2], {1: AVAILABLE}, [], [Load(2, PATHS[2])]),
        ([2], {1: AVAILABLE, 2: LOADING}, [], []),
        ([2], {1: AVAILABLE, 2: AVAILABLE}, [], [Unload(1)]),
        ([2], {1: AVAILABLE, 2: END}, [2], []),
        ([3], {1: AVAILABLE, 2: AVAILABLE}, [], [Unload(1), Load(3, PATHS[3])]),
        ([], {1: AVAILABLE, 2: LOADING}, [], [Unload(1)]),
        ([1], {1: END}, [], [Load(1, PATHS[1])]),
        ([1], {1: UNLOADING}, [], []),
        ([1], {1: NEW}, [], []),
        ([1], {1: AVAILABLE}, [], []),
    ],
)
def test_decide(
    want: list[int], known: dict[int, VersionState], failed: list[int], actions: list[Load | Unload]
) -> None:
    assert decide(wanted(*want), known, set(failed)) == actions


@given(
    want=st.sets(st.integers(1, 5)),
    known=st.dictionaries(st.integers(1, 5), st.sampled_from([LOADING, AVAILABLE, UNLOADING, END])),
)
def test_the_last_available_version_never_leaves_for_one_that_is_not_there(
    want: set[int], known: dict[int, VersionState]
) -> None:
    actions = decide(wanted(*want), known)
    unloads = {action.version for action in actions if isinstance(action, Unload)}
    available = {version for version, at in known.items() if at.state is State.AVAILABLE}
    assert unloads <= available - want
    if want and available:
        assert available - unloads


def policy(**choice: Any) -> Any:
    return protos.ModelConfig(model_version_policy=choice).model_version_policy


def test_policies_choose_versions() -> None:
    folders = source.by_version(["1", "abc", "0003", "12", "-4", ".5.part", "7x", "99999999999999999999"])
    assert folders == {1: "1", 3: "0003", 12: "12"}
    assert source.choose(policy(), folders) == [12]
    assert source.choose(policy(latest={"num_versions": 2}), folders) == [12, 3]
    assert source.choose(policy(all={}), folders) == [12, 3, 1]
    assert source.choose(policy(specific={"versions": [3, 4]}), folders) == [3]


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


class Fake:
    """A servable that is nothing, and knows whether it was let go."""

    def __init__(self) -> None:
        self.signatures: dict[str, Signature] = {}
        self.is_closed = threading.Event()

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        raise NotImplementedError

    def close(self) -> None:
        self.is_closed.set()


def test_a_version_in_use_is_not_let_go() -> None:
    servable = Fake()
    manager = ModelManager(lambda *_: servable, RetryPolicy(0, 0.0), 1)
    manager.want("m", wanted(1))
    until(lambda: manager.states("m").get(1) == AVAILABLE, "it loads")
    with manager.lease("m", None) as model:
        assert model.version == 1
        manager.want("m", {})
        until(lambda: manager.states("m")[1] == UNLOADING, "it is on its way out")
        with pytest.raises(StatusError):
            manager.lease("m", 1).__enter__()
        assert not servable.is_closed.wait(0.2)
    assert servable.is_closed.wait(30)
    until(lambda: manager.states("m")[1] == END, "it is gone")
    assert manager.close(10)


def test_a_failure_is_remembered_until_the_version_is_not_wanted() -> None:
    tries: list[int] = []

    def load(name: str, version: int, path: Path) -> Fake:
        tries.append(version)
        if len(tries) <= 2:
            raise OSError("disk on fire")
        return Fake()

    manager = ModelManager(load, RetryPolicy(1, 0.0), 1)
    manager.want("m", wanted(1))
    until(lambda: manager.states("m")[1].error is not None, "both tries failed")
    error = manager.states("m")[1].error
    assert error is not None
    assert "disk on fire" in error.message
    manager.want("m", wanted(1))
    assert len(tries) == 2
    manager.want("m", {})
    manager.want("m", wanted(1))
    until(lambda: manager.states("m")[1] == AVAILABLE, "a third try, since it was wanted anew")
    assert manager.close(10)


@pytest.mark.parametrize("is_gone_before", [True, False])
def test_a_version_that_was_removed_while_its_load_was_to_be_retried_starts_afresh(
    is_gone_before: bool,
) -> None:
    tries: list[Path] = []
    has_begun, may_fail = threading.Event(), threading.Event()

    def load(name: str, version: int, path: Path) -> Fake:
        tries.append(path)
        if len(tries) == 1:
            has_begun.set()
            assert may_fail.wait(30)
            raise OSError("disk on fire")
        return Fake()

    manager = ModelManager(load, RetryPolicy(5, 3600.0), 1)
    manager.want("m", wanted(1))
    assert has_begun.wait(30)
    manager.want("m", {})
    if is_gone_before:
        may_fail.set()
        until(lambda: manager.states("m")[1].state is State.END, "it is no longer tried")
    repaired, since = Path("/repaired/1"), manager.sequence()
    manager.want("m", {1: repaired})
    may_fail.set()
    until(lambda: manager.states("m")[1] == AVAILABLE, "it loads, since it was wanted anew")
    assert tries == [PATHS[1], repaired]
    assert manager.wait_for_models({"m"}, since, lambda: True) == {("m", 1): AVAILABLE}
    assert manager.close(10)


def test_looking_again_does_not_begin_a_load_anew() -> None:
    tries: list[int] = []
    has_begun, may_fail = threading.Event(), threading.Event()

    def load(name: str, version: int, path: Path) -> Fake:
        tries.append(version)
        has_begun.set()
        assert may_fail.wait(30)
        raise OSError("disk on fire")

    manager = ModelManager(load, RetryPolicy(0, 0.0), 1)
    manager.want("m", wanted(1))
    assert has_begun.wait(30)
    manager.want("m", wanted(1))
    may_fail.set()
    until(lambda: manager.states("m")[1].error is not None, "it has failed")
    assert manager.close(10)
    assert tries == [1]


def test_a_version_that_is_removed_between_two_tries_is_given_up_at_once() -> None:
    tries: list[int] = []

    def load(name: str, version: int, path: Path) -> Fake:
        tries.append(version)
        raise OSError("disk on fire")

    manager = ModelManager(load, RetryPolicy(5, 3600.0), 1)
    manager.want("m", wanted(1, 2, 3))
    until(lambda: len(tries) == 3, "all have failed once")
    manager.want("m", {})
    until(lambda: {at.state for at in manager.states("m").values()} == {State.END}, "they are given up")
    assert manager.close(10)


def test_the_end_waits_for_a_load_under_way() -> None:
    may_go_on = threading.Event()

    def load(name: str, version: int, path: Path) -> Fake:
        assert may_go_on.wait(30)
        return Fake()

    manager = ModelManager(load, RetryPolicy(0, 0.0), 1)
    manager.want("m", wanted(1))
    assert not manager.close(0.0)
    may_go_on.set()
    assert manager.close(30)
    assert manager.states("m") == {1: AVAILABLE}


def test_nothing_begins_to_load_after_the_end() -> None:
    manager = ModelManager(lambda *_: Fake(), RetryPolicy(0, 0.0), 1)
    assert manager.close(10)
    manager.want("m", wanted(1))
    assert manager.states("m") == {}


@pytest.mark.parametrize(("fails", "most_tries"), [(False, 1), (True, 2)])
def test_a_load_during_which_its_version_goes_and_comes_back(fails: bool, most_tries: int) -> None:
    """If it succeeds, it is not made twice; if not, it is made once more, and not for ever."""
    tries: list[int] = []
    has_begun, may_end = threading.Event(), threading.Event()

    def load(name: str, version: int, path: Path) -> Fake:
        tries.append(version)
        has_begun.set()
        assert may_end.wait(30)
        if fails:
            raise OSError("disk on fire")
        return Fake()

    manager = ModelManager(load, RetryPolicy(0, 0.0), 1)
    manager.want("m", wanted(1))
    assert has_begun.wait(30)
    manager.want("m", {})
    since = manager.sequence()
    manager.want("m", wanted(1))
    may_end.set()
    reached = manager.wait_for_models({"m"}, since, lambda: False)
    assert reached is not None
    assert (reached["m", 1] == AVAILABLE) is not fails
    assert manager.close(10)
    assert len(tries) == most_tries


def test_a_version_that_lies_elsewhere_when_it_is_wanted_again_is_loaded_from_there() -> None:
    """As when a model is taken out, and added anew with another base path, while it loads."""
    has_begun, may_go_on = threading.Event(), threading.Event()
    made: dict[Path, Fake] = {}

    def load(name: str, version: int, path: Path) -> Fake:
        made[path] = Fake()
        if len(made) == 1:
            has_begun.set()
            assert may_go_on.wait(30)
        return made[path]

    manager = ModelManager(load, RetryPolicy(0, 0.0), 1)
    manager.want("m", wanted(1))
    assert has_begun.wait(30)
    manager.want("m", {})
    since, elsewhere = manager.sequence(), Path("/elsewhere/1")
    manager.want("m", {1: elsewhere})
    may_go_on.set()
    assert manager.wait_for_models({"m"}, since, lambda: False) == {("m", 1): AVAILABLE}
    with manager.lease("m", 1) as model:
        assert model.servable is made[elsewhere]
    assert made[PATHS[1]].is_closed.wait(30)
    assert manager.close(10)


def test_a_failure_that_repeats_is_told_now_and_then() -> None:
    failures = Failures()
    assert failures.tell("no file", 100.0) == "no file"
    assert [failures.tell("no file", 100.0 + second) for second in range(1, 60)] == [None] * 59
    assert failures.tell("no file", 160.0) == "no file (60 more times)"
    assert failures.tell("no file", 161.0) is None
    assert failures.tell("half a file", 161.0) == "half a file"
    assert failures.tell("half a file", 221.0) == "half a file (1 more time)"
    assert failures.tries == 64


def test_a_version_that_is_given_up_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    def load(name: str, version: int, path: Path) -> Fake:
        raise OSError("disk on fire")

    manager = ModelManager(load, RetryPolicy(3, 0.0), 1)
    with caplog.at_level("INFO"):
        manager.want("m", wanted(1))
        until(lambda: manager.states("m")[1].error is not None, "all tries failed")
        assert manager.close(10)
    first, failed, given_up = [record.getMessage() for record in caplog.records]
    assert first == "Loading servable: {name: m version: 1} from /m/1"
    assert failed == "Loading servable: {name: m version: 1} failed: INTERNAL: OSError: disk on fire"
    assert "is given up after 4 tries" in given_up


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


def test_waiting_for_models_can_be_given_up() -> None:
    manager = ModelManager(lambda *_: Fake(), RetryPolicy(0, 0.0), 1)
    assert manager.wait_for_models({"m"}, 0, lambda: True) is None
    manager.want("m", wanted(1))
    reached = manager.wait_for_models({"m"}, 0, lambda: False)
    assert reached == {("m", 1): AVAILABLE}
    assert manager.close(10)


def test_a_negative_number_of_retries_means_one_try() -> None:
    manager = ModelManager(lambda *_: Fake(), RetryPolicy(-1, 0.0), 1)
    manager.want("m", wanted(1))
    until(lambda: manager.states("m").get(1) == AVAILABLE, "it loads")
    assert manager.close(10)


def test_errors_become_statuses() -> None:
    known = StatusError(Code.NOT_FOUND, "x")
    assert from_exception(known) is known
    assert from_exception(ZeroDivisionError("y")).code is Code.INTERNAL
    assert str(known) == "NOT_FOUND: x"

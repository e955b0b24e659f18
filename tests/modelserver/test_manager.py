"""Versions brought in and let go, whatever befalls their loads, and whoever still uses them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving.modelserver.failures import Failures
from serving.modelserver.lifecycle import State
from serving.modelserver.manager import ModelManager, RetryPolicy
from serving.modelserver.status import StatusError
from tests.modelserver.managed import AVAILABLE, END, LOADING, PATHS, UNLOADING, Fake, wanted
from tests.modelserver.process import until


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


def test_so_many_loads_run_at_once_and_no_more() -> None:
    begun, may_end = threading.Semaphore(0), threading.Event()

    def load(name: str, version: int, path: Path) -> Fake:
        begun.release()
        assert may_end.wait(30)
        return Fake()

    manager = ModelManager(load, RetryPolicy(0, 0.0), 2)
    manager.want("m", wanted(1, 2, 3))
    assert begun.acquire(timeout=30)
    assert begun.acquire(timeout=30)
    assert not begun.acquire(timeout=0.2)
    until(lambda: set(manager.states("m").values()) == {LOADING}, "one of them waits for its turn")
    may_end.set()
    assert begun.acquire(timeout=30)
    assert manager.close(30)
    assert set(manager.states("m").values()) == {AVAILABLE}


def test_the_end_waits_for_no_further_try(caplog: pytest.LogCaptureFixture) -> None:
    def load(name: str, version: int, path: Path) -> Fake:
        raise OSError("disk on fire")

    manager = ModelManager(load, RetryPolicy(5, 3600.0), 1)
    manager.want("m", wanted(1))
    until(lambda: "disk on fire" in caplog.text, "the first try has failed")
    assert manager.close(10)
    assert manager.states("m")[1].state is State.END


def test_the_end_ends_a_wait_for_models() -> None:
    manager = ModelManager(lambda *_: Fake(), RetryPolicy(0, 0.0), 1)
    is_waiting = threading.Event()

    def goes_on() -> bool:
        is_waiting.set()
        return False

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(manager.wait_for_models, {"m"}, 0, goes_on)
        assert is_waiting.wait(30)
        assert manager.close(30)
        assert waiting.result(30) is None


def test_who_names_no_version_gets_the_highest_that_serves() -> None:
    def load(name: str, version: int, path: Path) -> Fake:
        if version == 3:
            raise OSError("disk on fire")
        return Fake()

    manager = ModelManager(load, RetryPolicy(0, 0.0), 1)
    with pytest.raises(StatusError, match=r"Servable not found for request: Latest\(m\)"):
        manager.lease("m", None).__enter__()
    manager.want("m", wanted(1, 2, 3))
    until(
        lambda: {at.state for at in manager.states("m").values()} == {State.AVAILABLE, State.END},
        "all settle",
    )
    assert list(manager.states("m")) == [3, 2, 1]
    with manager.lease("m", None) as model, manager.lease("m", 1) as named:
        assert (model.version, named.version) == (2, 1)
    with pytest.raises(StatusError, match=r"Servable not found for request: Specific\(m, 3\)"):
        manager.lease("m", 3).__enter__()
    assert manager.close(30)


def test_a_version_that_two_use_is_kept_until_both_are_done() -> None:
    servable = Fake()
    manager = ModelManager(lambda *_: servable, RetryPolicy(0, 0.0), 1)
    manager.want("m", wanted(1))
    assert manager.wait_for_models({"m"}, 0, lambda: False) == {("m", 1): AVAILABLE}
    with manager.lease("m", 1):
        with manager.lease("m", 1):
            manager.want("m", {})
        assert not servable.is_closed.wait(0.2)
    assert servable.is_closed.wait(30)
    assert manager.close(30)


def test_only_what_changes_after_a_moment_is_waited_for() -> None:
    manager = ModelManager(lambda *_: Fake(), RetryPolicy(0, 0.0), 1)
    manager.want("m", wanted(1))
    assert manager.wait_for_models({"m"}, 0, lambda: False) == {("m", 1): AVAILABLE}
    assert manager.wait_for_models({"m"}, manager.sequence(), lambda: True) is None
    assert manager.wait_for_models({"m"}, manager.sequence() - 1, lambda: True) == {("m", 1): AVAILABLE}
    assert manager.close(30)


def test_a_version_that_is_wanted_again_as_it_leaves_comes_back() -> None:
    made: list[Fake] = []

    def load(name: str, version: int, path: Path) -> Fake:
        made.append(Fake())
        return made[-1]

    manager = ModelManager(load, RetryPolicy(0, 0.0), 1)
    manager.want("m", wanted(1))
    assert manager.wait_for_models({"m"}, 0, lambda: False) == {("m", 1): AVAILABLE}
    with manager.lease("m", 1):
        manager.want("m", {})
        since = manager.sequence()
        manager.want("m", wanted(1))
        assert manager.states("m") == {1: UNLOADING}
    assert manager.wait_for_models({"m"}, since, lambda: False) == {("m", 1): AVAILABLE}
    assert [servable.is_closed.is_set() for servable in made] == [True, False]
    assert manager.close(30)


def test_what_is_waited_for_is_the_highest_version_that_has_settled() -> None:
    manager = ModelManager(lambda *_: Fake(), RetryPolicy(0, 0.0), 1)
    manager.want("m", wanted(1, 2))
    until(lambda: list(manager.states("m").values()) == [AVAILABLE, AVAILABLE], "both are there")
    assert manager.wait_for_models({"m"}, 0, lambda: True) == {("m", 2): AVAILABLE}
    assert manager.close(30)


def test_a_versions_life_is_told_in_the_originals_words(caplog: pytest.LogCaptureFixture) -> None:
    manager = ModelManager(lambda *_: Fake(), RetryPolicy(0, 0.0), 1)
    with caplog.at_level("INFO"):
        manager.want("m", wanted(1))
        assert manager.wait_for_models({"m"}, 0, lambda: False) == {("m", 1): AVAILABLE}
        manager.want("m", {})
        assert manager.close(30)
    assert [record.getMessage() for record in caplog.records] == [
        "Loading servable: {name: m version: 1} from /m/1",
        "Successfully loaded servable version {name: m version: 1}",
        "Done unloading servable version {name: m version: 1}",
    ]

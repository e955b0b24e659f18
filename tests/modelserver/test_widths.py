"""One thread or all cores: which is taken for a run, and which models are loaded for both."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from serving.modelserver.flags import parse
from serving.modelserver.loading import Loading, may_load_twice
from serving.modelserver.manager import Servable
from serving.modelserver.metrics import Metrics
from serving.modelserver.servable import LoadOptions, Session
from serving.modelserver.signature import Signature
from serving.modelserver.status import StatusError, not_found
from serving.modelserver.widths import Cores, Kind, TwoWidths, Widths, kind_of

IMAGE, BATCH = Kind(("scores:0",), 1), Kind(("scores:0",), 32)
WAIT_S = 10.0


def runs(widths: Widths, kind: Kind, count: int, *, narrow_s: float, wide_s: float) -> list[bool]:
    """Choose and learn `count` times; whether each was wide."""
    chosen = []
    for _ in range(count):
        is_wide = widths.is_wide(kind)
        widths.learn(kind, is_wide=is_wide, took_s=wide_s if is_wide else narrow_s)
        chosen.append(is_wide)
    return chosen


def test_the_kind_of_a_run_is_what_is_fetched_and_about_how_many_rows() -> None:
    def rows(*shape: int) -> int:
        return kind_of({"x": np.zeros(shape), "scalar": np.zeros(())}, ["y"]).rows

    assert [rows(n, 2) for n in (0, 1, 2, 3, 4, 5, 8, 9, 32)] == [1, 1, 2, 4, 4, 8, 8, 16, 32]
    assert rows() == 1
    assert kind_of({}, ["y"]) == Kind(("y",), 1) != kind_of({}, ["z"])


@pytest.mark.parametrize(
    ("wide_s", "share"), [(0.5, "wide"), (0.8, "wide"), (0.9, "narrow"), (1.0, "narrow"), (1.7, "narrow")]
)
def test_all_cores_are_taken_if_they_save_a_sixth_of_the_time(wide_s: float, share: str) -> None:
    chosen = runs(Widths(), IMAGE, 1000, narrow_s=1.0, wide_s=wide_s)
    assert 4 <= chosen.count(share != "wide") <= 40  # tried at the start, and now and then
    assert {True, False} == set(chosen[:2])


def test_each_kind_has_its_own_width() -> None:
    widths = Widths()
    runs(widths, IMAGE, 50, narrow_s=1.0, wide_s=1.6)
    runs(widths, BATCH, 50, narrow_s=24.0, wide_s=16.0)
    assert not widths.is_wide(IMAGE)
    assert widths.is_wide(BATCH)


def test_what_the_machine_does_may_change() -> None:
    widths = Widths()
    runs(widths, BATCH, 200, narrow_s=24.0, wide_s=16.0)
    assert runs(widths, BATCH, 4000, narrow_s=24.0, wide_s=23.0)[-128:].count(True) <= 4
    assert runs(widths, BATCH, 4000, narrow_s=24.0, wide_s=12.0)[-128:].count(False) <= 4


def test_the_other_width_is_tried_several_times_in_a_row() -> None:
    """The first runs find their memory out of the caches, and would say that nothing has changed."""
    widths = Widths()
    runs(widths, BATCH, 20, narrow_s=24.0, wide_s=60.0)
    cold_s = iter([23.0, 22.0, 21.0])
    for _ in range(200):
        is_wide = widths.is_wide(BATCH)
        widths.learn(BATCH, is_wide=is_wide, took_s=next(cold_s, 16.0) if is_wide else 24.0)
    assert widths.is_wide(BATCH)


def test_a_run_that_was_disturbed_says_nothing() -> None:
    widths = Widths()
    runs(widths, BATCH, 20, narrow_s=24.0, wide_s=16.0)
    widths.learn(BATCH, is_wide=True, took_s=900.0)
    assert widths.is_wide(BATCH)


def test_the_other_width_is_tried_again_now_and_then() -> None:
    widths = Widths()
    chosen = runs(widths, IMAGE, 1280, narrow_s=1.0, wide_s=1.6)
    assert 30 <= chosen[128:].count(True) <= 40


def test_a_first_run_that_compiles_is_not_held_against_its_width() -> None:
    widths = Widths()
    for is_wide in (True, False):
        widths.learn(BATCH, is_wide=is_wide, took_s=60.0 if is_wide else 2.0)
    assert runs(widths, BATCH, 20, narrow_s=2.0, wide_s=1.0)[-5:] == [True] * 5


def test_a_caller_who_invents_kinds_takes_no_memory() -> None:
    widths = Widths(most_kinds=2)
    runs(widths, BATCH, 20, narrow_s=24.0, wide_s=12.0)
    runs(widths, Kind(("y:0",), 1), 1, narrow_s=1.0, wide_s=1.0)
    assert widths.is_wide(BATCH)
    runs(widths, Kind(("y:1",), 1), 1, narrow_s=1.0, wide_s=1.0)
    assert runs(widths, BATCH, 20, narrow_s=24.0, wide_s=12.0)[:3] == [True, False, True]
    assert widths.is_wide(BATCH)


class Scripted:
    """A servable that multiplies by `factor`; the next run waits, if it is told to."""

    def __init__(self, factor: float) -> None:
        self.factor, self.is_closed = factor, False
        self.signatures: dict[str, Signature] = {}
        self.threads: list[str] = []
        self.held: list[threading.Event] = []
        self.has_begun = threading.Event()

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        self.threads.append(threading.current_thread().name)
        held = self.held.pop() if self.held else None
        self.has_begun.set()
        if held is not None:
            assert held.wait(WAIT_S)
        if "none" in fetches:
            raise not_found("no such output")
        return [np.float32(self.factor) * feeds["x"]]

    def close(self) -> None:
        self.is_closed = True


ONE = {"x": np.ones(1, np.float32)}


def width_of(servable: Servable) -> float:
    """The factor of the servable that ran."""
    return float(servable.run(ONE, ["y"])[0][0])


@pytest.mark.parametrize(("cores", "others"), [(2, [1.0] * 4), (3, [1.0] * 4), (4, [2.0, 1.0, 2.0, 1.0])])
def test_more_runs_than_half_the_cores_are_narrow(cores: int, others: list[float]) -> None:
    """Beside another run, on four cores there is room."""
    narrow, wide = Scripted(1), Scripted(2)
    both = TwoWidths(narrow, wide, Cores(cores))
    may_go_on = threading.Event()
    wide.held.append(may_go_on)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(width_of, both)
        assert wide.has_begun.wait(WAIT_S)
        assert [width_of(both) for _ in range(4)] == others
        may_go_on.set()
        assert first.result(WAIT_S) == 2.0


def test_a_run_that_another_joins_teaches_nothing() -> None:
    cores = Cores(2)
    with cores.run() as first:
        had_room = [first.had_room]
        with cores.run() as second:
            assert not second.has_room
            assert not second.had_room
        had_room.append(first.had_room)
    assert had_room == [True, False]
    with cores.run() as later:
        assert later.had_room


def test_on_one_core_every_run_is_narrow() -> None:
    both = TwoWidths(Scripted(1), Scripted(2), Cores(1))
    assert [width_of(both) for _ in range(6)] == [1.0] * 6


def test_each_width_has_its_own_threads() -> None:
    """What TensorFlow prepares for an op is kept with the thread, and made for one width."""
    narrow, wide = Scripted(1), Scripted(2)
    both = TwoWidths(narrow, wide, Cores(2))
    for _ in range(6):
        width_of(both)
    assert {name.rpartition("_")[0] for name in narrow.threads} == {"narrow"}
    assert {name.rpartition("_")[0] for name in wide.threads} == {"wide"}


def test_a_run_that_fails_leaves_its_core() -> None:
    both = TwoWidths(Scripted(1), Scripted(2), Cores(2))
    for _ in range(2):
        with pytest.raises(StatusError, match="no such output"):
            both.run(ONE, ["none"])
    assert [width_of(both) for _ in range(4)] == [2.0, 1.0, 2.0, 1.0]  # each is tried


def loading(cores: Cores | None) -> Loading:
    return Loading(LoadOptions(), Metrics(), 0, True, None, cores)


def test_what_keeps_state_is_known(zoo: Path) -> None:
    folders = [zoo / name for name in ("half_plus_two_frozen/1", "half_plus_two/1", "half_plus_two_tf1/123")]
    assert [Session(folder, LoadOptions()).keeps_state for folder in folders] == [False, True, True]


@pytest.mark.parametrize(
    ("model", "cores", "kind"),
    [
        ("half_plus_two_frozen", Cores(2), TwoWidths),
        ("half_plus_two_frozen", None, Session),
        ("half_plus_two", Cores(2), Session),
    ],
)
def test_a_model_without_state_is_loaded_for_one_core_and_for_all(
    zoo: Path, model: str, cores: Cores | None, kind: type
) -> None:
    servable = loading(cores).load(model, 1, zoo / model / "1")
    assert type(servable) is kind
    signature = servable.signatures["serving_default"]
    (x,), (y,) = signature.inputs.values(), signature.outputs.values()
    rows = np.arange(6, dtype=np.float32)
    for _ in range(8):
        np.testing.assert_allclose(servable.run({x.name: rows}, [y.name])[0], rows / 2 + 2)
    servable.close()


def test_a_large_model_is_held_once(monkeypatch: pytest.MonkeyPatch, zoo: Path) -> None:
    monkeypatch.setattr("serving.modelserver.loading.MOST_BYTES_TWICE", 100)
    servable = loading(Cores(2)).load("m", 1, zoo / "half_plus_two_frozen" / "1")
    assert isinstance(servable, Session)


@pytest.mark.parametrize(
    ("flag", "cores", "expected"),
    [
        ("--port=0", 1, False),
        ("--port=0", 2, True),
        ("--port=0", 8, True),
        ("--port=0", 9, False),
        ("--tensorflow_intra_op_parallelism=1", 2, False),
        ("--tensorflow_inter_op_parallelism=1", 2, False),
        ("--tensorflow_session_parallelism=2", 2, False),
    ],
)
def test_threads_that_the_command_line_names_are_kept_to(flag: str, cores: int, expected: bool) -> None:
    assert may_load_twice(parse([flag])[0], cores) is expected


def test_both_are_freed() -> None:
    narrow, wide = Scripted(1), Scripted(2)
    TwoWidths(narrow, wide, Cores(2)).close()
    assert narrow.is_closed
    assert wide.is_closed

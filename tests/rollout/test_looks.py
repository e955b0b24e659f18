"""Single looks of a controller: what it counts as evidence, and what it leaves alone."""

from __future__ import annotations

import json
import re
import threading
import weakref
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from serving.errors import Unavailable
from serving.rollout.counts import Counts
from serving.rollout.known import KnownRollouts
from serving.rollout.machine import Phase, State
from serving.rollout.start import order
from serving.rollout.store import Files, FileStore
from serving.routing import Route, Split
from tests.rollout.looking import Folder, Gateways, Looking, evidence, in_canary
from tests.rollout.stored import new_rollout


@pytest.mark.parametrize("follows", [True, False], ids=["it followed", "it stood still"])
async def test_calls_are_evidence_once_though_another_one_led_for_a_while(
    tmp_path: Path, follows: bool
) -> None:
    in_canary(Folder(tmp_path))
    gateways = Gateways()
    first, second = (Looking(Folder(tmp_path), gateways, name) for name in ("a", "b"))
    await first.look()
    await first.look(calls=10.0)
    gateways.leader = "b"
    await second.look()
    for _ in range(5):
        await second.look(calls=10.0)
        if follows:
            await first.look()
    gateways.leader = "a"
    await first.look()
    assert evidence(Folder(tmp_path)) == 60.0
    await first.look(calls=10.0)
    assert evidence(Folder(tmp_path)) == 70.0


class Name(str):
    """The name of a count; supports weak references, so that a test can see it being freed."""

    __slots__ = ("__weakref__",)


@dataclass
class Watched(Gateways):
    """Keeps track of which of the counts that it returned are still referenced."""

    given: list[weakref.ref[Name]] = field(default_factory=list)

    def collect(self, model: str) -> dict[str, Counts]:
        counts: Counts = {Name(name): number for name, number in super().collect(model)["a"].items()}
        self.given += [weakref.ref(name) for name in counts if isinstance(name, Name)]
        return {"a": counts}

    def held(self) -> int:
        return sum(each() is not None for each in self.given)


async def test_what_was_counted_is_held_no_longer_than_a_rollout_is_under_way(tmp_path: Path) -> None:
    store, gateways = FileStore(tmp_path), Watched()
    in_canary(store)
    looking = Looking(store, gateways)
    for _ in range(3):
        await looking.look(calls=10.0)
    assert gateways.held() == 2, "up to which the evidence goes"
    found = store.load("digits")
    assert found is not None
    store.save(found.moved(State(Phase.ROLLED_BACK), None, 1e9))
    await looking.look()
    assert gateways.held() == 0


async def test_of_a_models_rollouts_only_the_newest_is_known() -> None:
    known, first, second = KnownRollouts(), new_rollout("digits-2"), new_rollout("digits-3")
    known.of(first).told = known.of(new_rollout(model="flowers")).told = 7
    assert (known.of(first).told, known.of(second).told, known.of(first).told) == (7, 0, 0)
    assert known.of(new_rollout(model="flowers")).told == 7


class Unsynced(Files):
    """While it is `failing`, the newest state is renamed into place, and then told of as failed."""

    failing = False
    _renamed = ""

    def replace(self, source: Path, target: Path) -> None:
        super().replace(source, target)
        self._renamed = target.name

    def sync_folder(self, folder: Path) -> None:
        if self.failing and self._renamed == "digits.json":
            raise OSError(5, "Input/output error")
        super().sync_folder(folder)


async def test_calls_are_evidence_once_though_a_save_seemed_to_fail(tmp_path: Path) -> None:
    in_canary(Folder(tmp_path))
    files = Unsynced()
    looking = Looking(Folder(tmp_path, files), Gateways())
    await looking.look()
    await looking.look(calls=10.0)
    files.failing = True
    with pytest.raises(OSError, match="Input/output error"):
        await looking.look(calls=10.0)
    files.failing = False
    assert evidence(Folder(tmp_path)) == 20.0, "it is in place all the same"
    await looking.look()
    assert evidence(Folder(tmp_path)) == 20.0
    await looking.look(calls=10.0)
    assert evidence(Folder(tmp_path)) == 30.0


class Unwritable(Files):
    """Cannot write anything of one model."""

    def write(self, path: Path, content: bytes) -> None:
        if path.name.startswith("digits"):
            raise PermissionError(13, "Permission denied")
        super().write(path, content)


async def test_a_model_whose_record_cannot_be_written_holds_up_no_other(tmp_path: Path) -> None:
    models = ("digits", "flowers")
    for model in models:
        Folder(tmp_path).save(new_rollout(f"{model}-2", model))
    looking = Looking(Folder(tmp_path, Unwritable()), Gateways(), models=models)
    with pytest.raises(PermissionError):
        await looking.look()
    found = [Folder(tmp_path).load(model) for model in models]
    assert [each.revision for each in found if each is not None] == [1, 2]


class Disobedient(FileStore):
    """Cannot carry out a command that somebody left."""

    def obey(self) -> None:
        raise Unavailable("one of the objects cannot be written")


async def test_a_command_that_cannot_be_carried_out_holds_up_no_rollout(tmp_path: Path) -> None:
    store = Disobedient(tmp_path)
    store.save(new_rollout())
    with pytest.raises(Unavailable, match="one of the objects"):
        await Looking(store, Gateways()).look()
    found = store.load("digits")
    assert found is not None
    assert found.revision == 2


async def test_a_rollout_ages_by_the_time_in_which_it_was_watched(tmp_path: Path) -> None:
    store = Folder(tmp_path)
    in_canary(store)
    looking, ages = Looking(store, Gateways()), []
    for away_s in (0.0, 0.0, 3600.0, 0.0):
        looking.now += away_s
        await looking.look()
        found = store.load("digits")
        ages.append(None if found is None else found.clock_s)
    assert ages == [0.0, 1.0, 11.0, 12.0]


async def test_no_call_is_lost_while_the_counts_are_away(tmp_path: Path) -> None:
    in_canary(Folder(tmp_path))
    gateways = Gateways()
    looking = Looking(Folder(tmp_path), gateways)
    await looking.look()
    gateways.away = True
    for _ in range(3):
        await looking.look(calls=10.0)
    assert evidence(Folder(tmp_path)) == 0.0
    gateways.away = False
    await looking.look(calls=10.0)
    assert evidence(Folder(tmp_path)) == 40.0


async def test_a_command_costs_an_interval_at_most(tmp_path: Path) -> None:
    in_canary(Folder(tmp_path))
    looking = Looking(Folder(tmp_path), Gateways())
    await looking.look()
    await looking.look(calls=10.0)
    order(Folder(tmp_path), "digits", "pause", by="a test", at=1e9)
    await looking.look(calls=10.0)
    await looking.look(calls=10.0)
    assert evidence(Folder(tmp_path)) in (20.0, 30.0)


async def test_a_move_is_told_of_though_the_gateway_that_made_it_ended(tmp_path: Path) -> None:
    store = Folder(tmp_path)
    store.save(new_rollout())
    order(store, "digits", "pause", by="a test", at=1e9)
    first = Looking(Folder(tmp_path), Gateways())
    for _ in range(2):
        await first.look()
    assert first.told == ["paused"], "that nobody looked when it was made"
    order(store, "digits", "abort", by="a test", at=1e9)
    second = Looking(Folder(tmp_path), Gateways())
    for _ in range(3):
        await second.look()
    assert second.told == ["rolling_back"]


async def test_a_move_that_is_told_of_twice_has_one_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Folder(tmp_path)
    store.save(new_rollout())
    order(store, "digits", "pause", by="a test", at=1e9)
    order(store, "digits", "abort", by="a test", at=1e9)
    for _ in range(2):  # the first one ends before it could note what it told
        await Looking(Folder(tmp_path), Gateways()).look()
    told = re.findall(r"a rollout moved .* move=(\d+) .* phase=(\w+)", capsys.readouterr().out)
    assert told == [("1", "paused"), ("2", "rolling_back")] * 2


@pytest.mark.parametrize("kept", [True, False], ids=["as it is", "as before this was kept"])
async def test_the_last_move_of_all_is_told_of_once(tmp_path: Path, kept: bool) -> None:
    over = new_rollout().moved(State(Phase.ROLLED_BACK), None, 1e9)
    Folder(tmp_path).save(over)
    path = tmp_path / "digits.json"
    if not kept:
        values = json.loads(path.read_text())
        del values["told"]
        path.write_text(json.dumps(values))
    told = []
    for _ in range(2):
        looking = Looking(Folder(tmp_path), Gateways(), models=())
        await looking.look()
        await looking.look()
        told += looking.told
    assert told == (["rolled_back"] if kept else [])


async def test_a_gateway_that_answers_says_what_is_slow_for_one_that_does_not(tmp_path: Path) -> None:
    store = Folder(tmp_path)
    store.save(replace(new_rollout(), state=State(Phase.SHADOW)))
    gateways = Gateways()
    leading, following = (Looking(Folder(tmp_path), gateways, name) for name in ("a", "b"))
    await leading.look()
    found = store.load("digits")
    assert found is not None
    assert found.latency_limit_s is None
    following.steering.set_split("digits", found.split(), None)
    for _ in range(100):
        following.steering.answered("digits", Route(1, "stable", None), 0.02, late=False)
    await following.look()
    await leading.look()
    found = store.load("digits")
    assert found is not None
    assert found.latency_limit_s == pytest.approx(0.02)


class Reads(FileStore):
    """Notes whose pin is read, and whether the event loop waits for it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.read: list[tuple[str, bool]] = []

    def pinned(self, model: str) -> int | None:
        self.read.append((model, threading.current_thread() is threading.main_thread()))
        return super().pinned(model)


@pytest.mark.parametrize("leader", ["a", "b"], ids=["it decides", "it follows"])
async def test_the_event_loop_waits_for_no_pin(tmp_path: Path, leader: str) -> None:
    store = Reads(tmp_path)
    names = tuple(f"model-{number}" for number in range(5))
    looking = Looking(store, Gateways(leader=leader), models=names)
    for name in names:
        store.pin(name, 1)
    await looking.look()
    assert {*store.read} == {(name, False) for name in names}
    assert len(store.read) <= 2 * len(names), "whoever decides looks for newer versions besides"
    assert looking.steering.splits() == {name: Split(1) for name in names}

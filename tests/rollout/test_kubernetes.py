"""The store and the leadership of a cluster, against an API server of the tests' own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightkube import Client

from serving.errors import Conflict, FailedPrecondition, InvalidInput, Unavailable
from serving.rollout import kubernetes, model_rollout
from serving.rollout.kubernetes import KubernetesStore
from serving.rollout.lease import LEASE_S, LeaseLeadership
from serving.rollout.machine import Phase, State
from serving.rollout.model_rollout import cluster_client
from serving.rollout.plan import Plan
from serving.rollout.record import Rollout
from serving.rollout.start import order
from serving.rollout.verdict import Outcome, Reason, Verdict
from tests.rollout.api_server import ApiServer, api_server
from tests.rollout.cluster import client_at, kubeconfig


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with api_server() as state:
        yield state


def client_of(server: ApiServer) -> Client:
    return client_at(server.url)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def followed(
    server: ApiServer, pin: int | None = 1, client: Client | None = None
) -> Iterator[KubernetesStore]:
    store = KubernetesStore(client or client_of(server))
    if pin is not None:
        store.pin("digits", pin)
    # It ends when the server, which outlives the block, is gone.
    threading.Thread(target=store.follow, daemon=True).start()
    try:
        yield store
    finally:
        store.close()


def asked_for(
    server: ApiServer, name: str = "digits-2", version: int = 2, model: str = "digits", **plan: Any
) -> None:
    spec = {"model": model, "version": version, "plan": plan}
    kind = {"apiVersion": "sluice.dev/v1alpha1", "kind": "ModelRollout"}
    server.create("modelrollouts", kind | {"metadata": {"name": name, "namespace": "serving"}, "spec": spec})


def loaded(store: KubernetesStore) -> Rollout:
    until(lambda: store.load("digits") is not None)
    found = store.load("digits")
    assert found is not None
    return found


def in_phase(rollout: Rollout, phase: Phase) -> Rollout:
    verdict = Verdict(Outcome.PASSED, (Reason("test", "for the test"),))
    return rollout.moved(State(phase, reason=verdict.reason), verdict, 1e9)


def test_an_object_is_a_rollout_and_its_status_tells_of_it(server: ApiServer) -> None:
    asked_for(server, alpha=0.02)
    with followed(server) as store:
        rollout = loaded(store)
        assert (rollout.stable, rollout.candidate, rollout.state.phase) == (1, 2, Phase.PENDING)
        assert rollout.plan.alpha == 0.02
        assert store.models() == ["digits"]
        saved = store.save(in_phase(rollout, Phase.CANARY))
        status = server.get("modelrollouts", "digits-2")["status"]
        assert (status["phase"], status["weight"], status["stableVersion"]) == ("canary", 0.01, 1)
        assert status["conditions"][0]["status"] == "False"
        assert loaded(store).events == saved.events
        done = store.save(in_phase(saved, Phase.PROMOTED))
        status = server.get("modelrollouts", "digits-2")["status"]
        assert (status["phase"], status["stableVersion"]) == ("promoted", 2)
        assert status["finishedAt"] is not None
        assert done.finished


@pytest.mark.parametrize("version", [0, 2**63])
def test_no_object_is_made_for_what_is_no_version(server: ApiServer, version: int) -> None:
    store = KubernetesStore(client_of(server))
    store.refresh()
    with pytest.raises(InvalidInput, match=f"{version} is not a version; versions are numbers from 1 to"):
        store.create("digits", version, Plan())
    assert store.create("digits", 2**63 - 1, Plan()).startswith(f"digits-{2**63 - 1}-")
    store.refresh()
    assert len(store._of("digits")) == 1


def test_only_one_of_two_controllers_saves(server: ApiServer) -> None:
    asked_for(server)
    with followed(server) as first, followed(server) as second:
        ours, theirs = loaded(first), loaded(second)
        first.save(replace(ours, clock_s=1.0))
        with pytest.raises(Conflict):
            second.save(replace(theirs, clock_s=2.0))
        until(lambda: loaded(second).clock_s == 1.0)
        assert second.save(replace(loaded(second), clock_s=3.0)).revision == 2


def test_a_write_that_others_overtook_is_the_servers_to_refuse(server: ApiServer) -> None:
    asked_for(server)
    with followed(server) as store:
        rollout = loaded(store)
        store.close()
        server.drop_watches()
        server.patch("modelrollouts", "digits-2", {"spec": {"command": "pause"}})
        with pytest.raises(Conflict):
            store.save(replace(rollout, clock_s=1.0))
        assert server.conflicts == 1


@pytest.mark.parametrize("fault", ["drop", "gone", "masked"])
def test_watches_that_end_begin_again(server: ApiServer, fault: str) -> None:
    with followed(server) as store:
        until(lambda: server.watches == 1)
        server.masked = fault == "masked"
        if fault in ("drop", "masked"):
            server.drop_watches()
            until(lambda: not server.masked)
        else:
            server.forget_events()
        asked_for(server)
        assert loaded(store).candidate == 2
        asked_for(server, "digits-3", 3)
        until(lambda: len(store.history("digits")) == 2)


def test_a_watch_whose_path_was_cut_is_given_up(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can tell it that its server has ended it; a gateway would go by what it heard last for ever."""
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, server)))
    monkeypatch.setattr(kubernetes, "WATCH_S", 0)
    monkeypatch.setattr(model_rollout, "WATCH_S", 0)
    monkeypatch.setattr(model_rollout, "LATE_S", 0.2)
    with followed(server, client=cluster_client("serving")) as store:
        until(lambda: server.watches > 0)
        server.cut_watches()
        asked_for(server)
        assert loaded(store).candidate == 2


def test_rollouts_of_one_model_come_one_after_the_other(server: ApiServer) -> None:
    asked_for(server, "a", 2)
    asked_for(server, "b", 3)
    with followed(server) as store:
        until(lambda: len(store.history("digits")) == 2)
        first = loaded(store)
        assert first.id == "a"
        store.save(in_phase(first, Phase.PROMOTED))
        second = loaded(store)
        assert (second.id, second.stable, second.candidate) == ("b", 2, 3)


@pytest.mark.parametrize("seen", ["watched", "listed"])
def test_an_unfinished_rollout_whose_object_is_deleted_leaves_its_stable_version(
    server: ApiServer, seen: str
) -> None:
    asked_for(server)
    with followed(server) as store:
        store.save(in_phase(loaded(store), Phase.CANARY))
    with followed(server, pin=None) as late:
        assert loaded(late).state.phase is Phase.CANARY
        assert late.pinned("digits") == 1, "as the object says, whichever versions are loaded now"
        with server.lock:
            server.delete("modelrollouts", "digits-2")
            if seen == "listed":
                server.forget_events()
        until(lambda: late.models() == [])
        assert (late.load("digits"), late.pinned("digits")) == (None, 1)


def spoilt(server: ApiServer, name: str = "digits-2") -> None:
    """Gives an object a record that a later version of this program might write."""
    found = server.get("modelrollouts", name)
    found["status"]["state"]["format"] = 99
    server.replace("modelrollouts", name, found, status=True)


def test_a_record_that_cannot_be_read_is_told_of_once_and_is_not_no_record(
    server: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    asked_for(server)
    with followed(server, pin=None) as store:
        until(lambda: store.models() == ["digits"])
        assert not store.unreadable("digits"), "nobody has begun with it"
        store.pin("digits", 1)
        store.save(in_phase(loaded(store), Phase.CANARY))
        assert not store.unreadable("digits")
        spoilt(server)
        until(lambda: store.unreadable("digits") is not None)
        assert store.load("digits") is None
        assert capsys.readouterr().out.count("a ModelRollout cannot be read") == 1
    with followed(server, pin=None) as late:
        until(lambda: late.unreadable("digits") is not None)
        assert late.pinned("digits") == 1
        server.delete("modelrollouts", "digits-2")
        until(lambda: not late.unreadable("digits"))
        assert late.pinned("digits") == 1


def test_an_old_record_that_cannot_be_read_does_not_stand_in_the_way(server: ApiServer) -> None:
    asked_for(server, "a", 2)
    with followed(server) as store:
        store.save(in_phase(loaded(store), Phase.PROMOTED))
        asked_for(server, "b", 3)
        until(lambda: loaded(store).id == "b")
        store.save(in_phase(loaded(store), Phase.CANARY))
        spoilt(server, "a")
        until(lambda: [each.id for each in store.history("digits")] == ["b"])
        assert not store.unreadable("digits")
        assert (loaded(store).id, loaded(store).stable) == ("b", 2)


def test_commands_in_the_object_are_obeyed_once_and_cleared(server: ApiServer) -> None:
    asked_for(server)
    with followed(server) as store:
        store.save(in_phase(loaded(store), Phase.CANARY))
        server.patch("modelrollouts", "digits-2", {"spec": {"command": "abort"}})

        def obeyed() -> bool:
            store.obey()
            return "command" not in server.get("modelrollouts", "digits-2")["spec"]

        until(obeyed)
        assert loaded(store).state.reason.code == "command.abort"
        server.patch("modelrollouts", "digits-2", {"spec": {"command": "pause"}})
        until(obeyed)
        assert loaded(store).state.phase is Phase.ROLLING_BACK, (
            "a command that makes no sense is cleared, too"
        )


def test_a_command_in_an_object_that_waits_is_refused_aloud(
    server: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    asked_for(server, "a", 2)
    asked_for(server, "b", 3)
    with followed(server) as store:
        store.save(in_phase(loaded(store), Phase.CANARY))
        server.patch("modelrollouts", "b", {"spec": {"command": "abort"}})

        def cleared() -> bool:
            store.obey()
            return "command" not in server.get("modelrollouts", "b")["spec"]

        until(lambda: store.asked("b"))
        until(cleared)
        assert loaded(store).state.phase is Phase.CANARY
    assert "it is not the rollout under way" in capsys.readouterr().out


def test_an_object_that_cannot_be_written_holds_up_no_other_one_s_command(server: ApiServer) -> None:
    asked_for(server, "digits-2")
    asked_for(server, "flowers-2", model="flowers")
    with followed(server) as store:
        store.pin("flowers", 1)
        for name in ("digits-2", "flowers-2"):
            server.patch("modelrollouts", name, {"spec": {"command": "pause"}})
        until(lambda: store.asked("digits-2") and store.asked("flowers-2"))
        store.close()
        server.drop_watches()
        server.delete("modelrollouts", "digits-2")
        with pytest.raises(Unavailable, match="refused"):
            store.obey()
    assert server.get("modelrollouts", "flowers-2")["status"]["phase"] == "paused"
    assert not store.asked("flowers-2")


def test_the_desk_commands_but_does_not_start(server: ApiServer) -> None:
    with followed(server) as store:
        asked_for(server)
        rollout = loaded(store)
        assert order(store, "digits", "pause", by="a test", at=1e9).state.phase is Phase.PAUSED
        with pytest.raises(FailedPrecondition, match="begins as a ModelRollout object"):
            store.save(replace(rollout, id="another"))


def test_a_server_that_cannot_be_reached_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="has not answered yet"):
        KubernetesStore(client_at("http://127.0.0.1:9")).models()


class Clock:
    """A clock that tests set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_one_of_several_gateways_leads_and_another_follows_when_it_is_gone(server: ApiServer) -> None:
    clock = Clock()
    first, second = (LeaseLeadership(client_of(server), name, clock) for name in ("first", "second"))
    assert (first.held(), second.held()) == (True, False)
    for _ in range(10):
        clock.now += 6.0
        assert (first.held(), second.held()) == (True, False)
    first.release()
    assert second.held()
    clock.now += LEASE_S - 1.0
    third = LeaseLeadership(client_of(server), "third", clock)
    assert not third.held()
    clock.now += LEASE_S + 1.0
    assert third.held(), "the second has not renewed for a lease's time"
    assert not second.held()

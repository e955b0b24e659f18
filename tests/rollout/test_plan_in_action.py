"""What a plan asks for is done: swaps one by one, quiet hours, the webhook, copies that harm nobody."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from serving.rollout import events
from serving.rollout.events import Announcer
from serving.rollout.explain import replay
from serving.rollout.machine import Phase, State
from serving.rollout.plan import Plan
from serving.rollout.steering import Steering
from serving.routing import Route, Split
from tests.rollout.replicas import FAST, Scene, VersionedReplica, scene_over
from tests.rollout.stored import new_rollout
from tests.support.beside import beside
from tests.support.fake_replica import Refusal, until
from tests.support.gateways import counted

ALWAYS = [{"start": "00:00", "end": "12:00"}, {"start": "12:00", "end": "00:00"}]
SHADOW_ONLY = FAST | {"shadow": {"share": 1.0, "min_samples": 10**6, "min_time_s": 1000}}


async def failing() -> None:
    raise Refusal(grpc.StatusCode.INTERNAL, "the model failed")


async def test_replicas_are_swapped_one_at_a_time_where_memory_is_tight(tmp_path: Path) -> None:
    replicas = [VersionedReplica() for _ in range(3)]
    async with scene_over(tmp_path, *replicas) as scene:
        fewest = 3

        async def count() -> None:
            nonlocal fewest
            while True:
                held = [each.versions["digits"] for each in replicas]
                fewest = min(fewest, sum(bool(each) for each in held))
                assert all(len(each) <= 1 for each in held), "never two versions in one memory"
                await asyncio.sleep(0)

        async with beside(count()):
            scene.begin(FAST | {"max_unavailable": 1})
            rollout = await scene.until_finished()
        assert rollout.state.phase is Phase.PROMOTED, rollout.state.reason
        assert fewest >= 2
        assert {status for status, _ in scene.answered} == {200}
    for replica in replicas:
        assert all(len(config) == 1 for config in replica.configs)
        assert replica.configs[-1] == [2]


async def test_nothing_begins_in_quiet_hours_but_what_harms_is_rolled_back(tmp_path: Path) -> None:
    replica = VersionedReplica()
    async with scene_over(tmp_path, replica) as scene:
        scene.begin(FAST | {"quiet_hours": ALWAYS})
        await until(lambda: scene.rollout.clock_s > 0.3)
        assert scene.rollout.events == ()
        await scene.ordered("abort")
        assert (await scene.until_finished()).state.phase is Phase.ROLLED_BACK
        # It began before the quiet hours, and is in the midst of its canary when they come.
        scene.begin(FAST | {"canary": [{"weight": 0.2, "min_time_s": 1000}]})
        await scene.reached(Phase.CANARY)
        await scene.replan({"quiet_hours": ALWAYS, "canary": [{"weight": 0.2, "min_time_s": 0.1}]})
        seen = scene.rollout.clock_s
        await until(lambda: scene.rollout.clock_s > seen + 0.5)
        assert scene.rollout.state.phase is Phase.CANARY
        replica.behaviour[2] = failing
        rollout = await scene.until_finished()
        assert (rollout.state.phase, rollout.state.reason.code) == (Phase.ROLLED_BACK, "errors.worse")


async def test_quiet_hours_use_up_no_time_of_a_canary(tmp_path: Path) -> None:
    async with scene_over(tmp_path, VersionedReplica()) as scene:
        step = {"weight": 0.2, "min_time_s": 0, "min_requests": 10**9}
        scene.begin(FAST | {"canary": [step], "on_inconclusive": "rollback"})
        await scene.reached(Phase.CANARY)
        await scene.replan({"quiet_hours": ALWAYS})
        began, state = scene.rollout.clock_s, scene.rollout.state
        await until(lambda: scene.rollout.state.quiet_s > 0.0)
        # The limit is that of now, and a little: without the quiet hours it would be over at once.
        limit_s = began - state.entered_at + 0.2
        await scene.replan({"limits": FAST["limits"] | {"canary_s": limit_s}})
        await until(lambda: scene.rollout.clock_s > began + 1.0)
        assert scene.rollout.state.phase is Phase.CANARY
        await scene.replan({"quiet_hours": ()})
        rollout = await scene.until_finished()
        assert rollout.state.reason.code == "canary.inconclusive"
        assert all(each.same for each in replay(rollout)[-2:])


@contextmanager
def webhook(routed: Callable[[], float] = lambda: 0.0) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Somebody who is told; where, and what came, with the weight that callers were routed by then."""
    told: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            told.append(body | {"routed": routed()})
            # The third call fails: nobody minds.
            self.send_response(500 if len(told) == 3 else 204)
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/moves", told
    finally:
        server.shutdown()
        server.server_close()


async def test_each_move_is_told_to_the_webhook_the_metrics_and_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with webhook() as (url, told):
        async with scene_over(tmp_path, VersionedReplica()) as scene:
            scene.begin(FAST | {"webhook": url})
            rollout = await scene.until_finished()
            await until(lambda: len(told) == len(rollout.events))
            entered = [event.after.phase.value for event in rollout.events]
            assert [each["phase"] for each in told] == entered
            assert [(each["rollout"], each["move"]) for each in told] == [
                (rollout.id, number) for number in range(1, len(entered) + 1)
            ]
            assert (told[0]["model"], told[0]["stable"], told[0]["candidate"]) == ("digits", 1, 2)
            assert told[3]["reason"] == rollout.events[3].after.reason.text
            moves = [
                counted(scene.running, "sluice_rollout_moves_total", phase=phase) for phase in set(entered)
            ]
            assert sum(moves) == len(entered)
            await until(lambda: counted(scene.running, "sluice_rollout_info", phase="promoted") == 1.0)
    logged = capsys.readouterr().out
    assert logged.count("a rollout moved") == len(entered)
    assert "the webhook of a rollout was not told" in logged
    assert "it answered 500" in logged
    assert url not in logged


async def test_a_move_is_acted_on_before_it_is_told_of_whoever_made_it(tmp_path: Path) -> None:
    scenes: list[Scene] = []
    with webhook(lambda: scenes[0].running.gateway.steering.splits()["digits"].weight) as (url, told):
        async with scene_over(tmp_path, VersionedReplica()) as scene:
            scenes.append(scene)
            scene.begin(FAST | {"webhook": url, "canary": [{"weight": 0.2, "min_time_s": 1000}]})
            await scene.reached(Phase.CANARY)
            await scene.ordered("abort")
            rollout = await scene.until_finished()
            await until(lambda: len(told) == len(rollout.events))
    assert [(each["phase"], each["code"]) for each in told] == [
        (event.after.phase.value, event.after.reason.code) for event in rollout.events
    ]
    assert (told[-2]["phase"], told[-2]["code"]) == ("rolling_back", "command.abort")
    assert [each["routed"] for each in told] == [each["weight"] for each in told]


async def test_a_webhook_that_never_ends_its_answer_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
            while True:
                writer.write(b".")
                await writer.drain()
                await asyncio.sleep(0.01)

    monkeypatch.setattr(events, "_WEBHOOK_TIMEOUT_S", 0.2)
    async with await asyncio.start_server(drip, "127.0.0.1", 0) as server:
        plan = Plan(webhook=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        rollout = replace(new_rollout(), plan=plan).moved(State(Phase.LOADING), None, 1e9)
        async with asyncio.timeout(20):
            await Announcer(CollectorRegistry()).moved(rollout, 1)
    assert "no answer within 0.2 s" in capsys.readouterr().out


async def test_a_first_answer_that_is_slow_even_when_warm_fails_the_preflight(tmp_path: Path) -> None:
    async def slow() -> None:
        await asyncio.sleep(0.1)

    replica = VersionedReplica(before_self_test=slow)
    async with scene_over(tmp_path, replica) as scene:
        scene.begin(FAST | {"preflight": {"max_warm_latency_s": 0.05}})
        rollout = await scene.until_finished()
        assert (rollout.state.phase, rollout.state.reason.code) == (Phase.ROLLED_BACK, "preflight.slow")


async def test_copies_are_made_in_the_shadow_only_and_nobody_waits_for_them(tmp_path: Path) -> None:
    asked = 0

    async def slow() -> None:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.5)

    replica = VersionedReplica(behaviour={2: slow})
    async with scene_over(tmp_path, replica, callers=1) as scene:
        scene.begin(SHADOW_ONLY)
        await scene.reached(Phase.SHADOW)
        await until(lambda: asked >= 2)
        before, started = len(scene.answered), time.monotonic()
        await until(lambda: len(scene.answered) >= before + 40)
        each_s = (time.monotonic() - started) / 40
        assert each_s < 0.25, "a copy takes half a second; callers do not"
        assert {version for _, version in scene.answered} == {1}
        await scene.ordered("promote")
        await scene.until_finished()


async def test_no_copy_is_made_in_the_canary(tmp_path: Path) -> None:
    callers = 4
    async with scene_over(tmp_path, VersionedReplica(), callers=callers) as scene:
        scene.begin(FAST | {"canary": [{"weight": 0.01, "min_time_s": 1000}]})
        await scene.reached(Phase.CANARY)
        steering = scene.running.gateway.steering
        await until(lambda: steering.splits()["digits"].shadow == 0.0)
        copies, seen = steering.counts("digits")["copies/2"], len(scene.answered)
        await until(lambda: len(scene.answered) > seen + 80)
        # Each caller may have a request that was routed in the shadow, and two copies may be under way.
        assert steering.counts("digits")["copies/2"] <= copies + callers + 2


async def test_copies_are_dropped_first_under_load() -> None:
    waiting, asked = True, 0
    gate = asyncio.Event()

    async def ask(version: int) -> list[str]:
        nonlocal asked
        asked += 1
        await gate.wait()
        return ["seven"]

    async with Steering(busy=lambda: waiting) as steering:
        steering.set_split("digits", Split(1, 2, 0.0, 1.0, "x"), None)
        route = Route(1, "stable", 2)
        assert list(steering.copy("digits", route, ["seven"], ask)) == []
        waiting = False
        names = [list(steering.copy("digits", route, ["seven"], ask)) for _ in range(5)]
        assert [len(each) for each in names] == [1, 1, 0, 0, 0], "two at once at most"
        assert names[0] != names[1]
        await until(lambda: asked == 2)
        gate.set()
        await until(lambda: steering.counts("digits").get("copies/2") == 2.0)
        assert steering.counts("digits")["agreed/2/seven"] == 2.0

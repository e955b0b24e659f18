"""Scripted replicas whose versions follow their config, and a gateway with a controller over them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np

from serving import protos, tensors
from serving.errors import Conflict
from serving.main import Running, _rollouts_of
from serving.processes.upstream import Upstream
from serving.rollout.machine import Command, Phase
from serving.rollout.plan import Plan
from serving.rollout.record import Rollout
from serving.rollout.start import order, start
from serving.rollout.store import FileStore, Store
from serving.settings import Settings
from tests.support.beside import beside
from tests.support.fake_replica import CLASSES, LABELS, FakeReplica, Refusal, running
from tests.support.gateways import gateway_over

FAST: dict[str, Any] = {
    "shadow": {"share": 0.5, "min_samples": 40, "min_time_s": 0.2},
    "canary": [
        {"weight": 0.2, "min_time_s": 0.3, "min_requests": 10},
        {"weight": 0.5, "min_time_s": 0.3, "min_requests": 10},
    ],
    "criteria": {
        "errors": {"acceptable_rate": 0.05, "margin": 2.0},
        "latency": {"limit_s": 0.25, "acceptable_rate": 0.2, "margin": 3.0},
        "accuracy": None,
    },
    "limits": {"load_s": 20, "drain_s": 0.2},
}


@dataclass
class VersionedReplica(FakeReplica):
    """A replica that has what its config says and its disk has.

    Attributes:
        disk: The versions that can be loaded.
        broken: Versions that fail to load.
        behaviour: version -> awaited before each Predict of that version; may wait, or raise Refusal.
        answers: version -> what it makes of the right class.
        self_test_off: version -> by how much its self-test is off.
        before_self_test: awaited before each self-test.
        configs: Every config that came: the versions of "digits".
        labels: The version labels of "digits" as of the last config.
        relabelled: Versions whose labels are in another order.
        speechless: Versions that fail when they are asked for their labels.
    """

    disk: set[int] = field(default_factory=lambda: {1, 2})
    broken: set[int] = field(default_factory=set)
    behaviour: dict[int, Callable[[], Any]] = field(default_factory=dict)
    answers: dict[int, Callable[[int], int]] = field(default_factory=dict)
    self_test_off: dict[int, float] = field(default_factory=dict)
    before_self_test: Callable[[], Any] | None = None
    wanted: list[int] = field(default_factory=list)
    configs: list[list[int]] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    relabelled: set[int] = field(default_factory=set)
    speechless: set[int] = field(default_factory=set)

    async def predict(self, request: Any) -> Any:
        version, signature = request.model_spec.version.value, request.model_spec.signature_name
        if signature == "self_test":
            self._check(request.model_spec)
            if self.before_self_test is not None:
                await self.before_self_test()
            n = len(tensors.from_proto(request.inputs["index"]))
            expected = np.full((n, CLASSES), 0.1, np.float32)
            off = np.float32(self.self_test_off.get(version, 0.0))
            return self._answer(request, expected=expected, actual=expected + off)
        if signature == "serving_default" and version in self.behaviour:
            await self.behaviour[version]()
        response = await super().predict(request)
        if signature == "serving_default" and version in self.answers:
            scores = tensors.from_proto(response.outputs["scores"]).copy()
            order = [self.answers[version](index) for index in range(CLASSES)]
            permuted = np.empty_like(scores)
            permuted[:, order] = scores
            response.outputs["scores"].CopyFrom(tensors.to_proto(permuted))
        return response

    def _describe(self, request: Any) -> Any:
        if request.model_spec.version.value in self.speechless:
            raise Refusal(grpc.StatusCode.INTERNAL, "the lookup table is broken")
        response = super()._describe(request)
        if request.model_spec.version.value in self.relabelled and "label" in response.outputs:
            index = tensors.from_proto(request.inputs["index"])
            label = np.array([LABELS[-1 - each].encode() for each in index], object)
            response.outputs["label"].CopyFrom(tensors.to_proto(label))
        return response

    async def metadata(self, request: Any) -> Any:
        response = await super().metadata(request)
        found = protos.SignatureDefMap()
        response.metadata["signature_def"].Unpack(found)
        found.signature_def["self_test"].inputs["index"].dtype = tensors.data_type_of(np.dtype(np.int32))
        response.metadata["signature_def"].Pack(found)
        return response

    async def status(self, request: Any) -> Any:
        response = await super().status(request)
        for version in sorted(self.broken & set(self.wanted)):
            each = response.model_version_status.add(version=version, state="END")
            each.status.error_code, each.status.error_message = 3, "the file is damaged"
        return response

    async def reload(self, request: Any) -> Any:
        (entry,) = request.config.model_config_list.config
        labels = dict(entry.version_labels)
        if not set(labels.values()) <= self.versions["digits"]:
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, "a label points at what is not available")
        self.wanted = sorted(entry.model_version_policy.specific.versions)
        self.configs.append(self.wanted)
        self.labels = labels
        self.versions = {"digits": set(self.wanted) & self.disk - self.broken}
        return protos.ReloadConfigResponse()


@dataclass
class Scene:
    """A gateway with a controller, its replicas and store, and the answers that callers got."""

    running: Running
    client: httpx.AsyncClient
    replicas: list[VersionedReplica]
    store: Store
    answered: list[tuple[int, int]] = field(default_factory=list)

    def begin(self, plan: dict[str, Any] | None = None, to: int = 2) -> Rollout:
        return start(self.store, "digits", to, Plan.model_validate(FAST if plan is None else plan), 1e9)

    @property
    def rollout(self) -> Rollout:
        found = self.store.load("digits")
        assert found is not None
        return found

    async def ordered(self, what: Command) -> Rollout:
        """The rollout after a person's command."""
        return await asyncio.to_thread(order, self.store, "digits", what, by="a test", at=2e9)

    async def replan(self, changes: dict[str, Any]) -> None:
        """Changes the plan of the rollout that is under way, which only a test may."""
        while True:
            found = self.rollout
            values = found.plan.model_dump(mode="json") | changes
            with contextlib.suppress(Conflict):
                self.store.save(dataclasses.replace(found, plan=Plan.model_validate(values)))
                return
            await asyncio.sleep(0)

    async def reached(self, phase: Phase, timeout_s: float = 60.0) -> None:
        """Waits until the rollout is in this phase."""
        async with asyncio.timeout(timeout_s):
            while self.rollout.state.phase is not phase:
                await asyncio.sleep(0.01)

    async def until_finished(self, timeout_s: float = 60.0) -> Rollout:
        """The rollout at its end; callers keep asking until then."""
        async with asyncio.timeout(timeout_s):
            while not self.rollout.finished:
                await asyncio.sleep(0.02)
        return self.rollout


def picture(brightness: int) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), brightness, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = [picture(int((index + 0.5) * 25.6)) for index in range(CLASSES)]


async def ask_for_ever(scene: Scene, callers: int = 4, pause_s: float = 0.0) -> None:
    """Callers that ask one after the other; notes the status and the version of each answer."""

    async def caller(number: int) -> None:
        turn = number
        while True:
            turn += callers
            answer = await scene.client.post(
                "/v1/models/digits:classify",
                content=PICTURES[turn % CLASSES],
                headers={"content-type": "image/png"},
            )
            version = answer.json().get("version", 0)
            scene.answered.append((answer.status_code, version))
            await asyncio.sleep(pause_s)

    async with asyncio.TaskGroup() as tasks:
        for number in range(callers):
            tasks.create_task(caller(number))


@asynccontextmanager
async def scene_over(
    store: Path,
    *replicas: VersionedReplica,
    over: list[VersionedReplica] | None = None,
    callers: int = 4,
    headers: dict[str, str] | None = None,
    models_dir: Path = Path("/nowhere"),
    **settings: Any,
) -> AsyncIterator[Scene]:
    """A scene over replicas, its own or those of another scene; callers ask all the while."""
    values: dict[str, Any] = {"rollout_store": store, "rollout_interval_s": 0.05} | settings
    async with AsyncExitStack() as stack:
        up: list[FakeReplica] = [await stack.enter_async_context(running(each)) for each in replicas]
        up += over or []
        gateway, client = await stack.enter_async_context(gateway_over(*up, **values))
        client.headers.update(headers or {})
        loaded = Settings(http_port=0, grpc_port=0, **values)
        upstream = Upstream(tuple(each.address for each in up), ("digits",), models_dir)
        await stack.enter_async_context(_rollouts_of(loaded, gateway, upstream))
        scene = Scene(gateway, client, list(replicas), FileStore(store))
        async with asyncio.timeout(60):
            while scene.store.pinned("digits") is None:
                await asyncio.sleep(0.01)
        async with beside(ask_for_ever(scene, callers)):
            yield scene

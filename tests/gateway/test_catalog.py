"""What the gateway learns about versions, whatever they say of themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
from structlog.testing import capture_logs

from serving import catalog, learning
from tests.doors.replica import ScriptedReplica
from tests.support.fake_replica import CLASSES, LABELS, FakeReplica, Refusal, running, until
from tests.support.gateways import counted, gateway_over
from tests.support.http import PATH, PNG, grey_png, refused

NAMES = [label.encode() for label in LABELS]


def texts(*values: bytes, shape: tuple[int, ...] = (-1,)) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array.reshape(shape)


@dataclass
class OddReplica(FakeReplica):
    """Describes its versions otherwise than a model of Sluice's does.

    Attributes:
        says: what `describe` gives in place of the label or the card; None: nothing of that name.
        before_describe: awaited before `describe` answers; may raise Refusal.
    """

    says: dict[str, np.ndarray | None] = field(default_factory=dict)
    before_describe: Callable[[Any], Awaitable[None]] | None = None

    async def predict(self, request: Any) -> Any:
        if self.before_describe is not None and request.model_spec.signature_name == "describe":
            await self.before_describe(request)
        return await super().predict(request)

    def _answer(self, request: Any, **outputs: np.ndarray) -> Any:
        said = {name: self.says.get(name, array) for name, array in outputs.items()}
        return super()._answer(request, **{name: each for name, each in said.items() if each is not None})


async def first_label(client: Any) -> str:
    answer = await client.post(PATH, content=grey_png(200), headers=PNG)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["results"][0]["classes"][0]["label"])


@pytest.mark.parametrize(
    ("output", "said", "why"),
    [
        ("card", texts(b"{"), 'output "card" is not JSON'),
        ("card", texts(b'["a"]'), 'output "card" is JSON, but no object: b\'["a"]\''),
        ("card", texts(shape=(0,)), 'output "card" is strings [0]; strings [1] were due'),
        ("card", texts(b"{}", shape=()), 'output "card" is strings []; strings [1] were due'),
        ("card", np.ones(1, np.float32), 'output "card" is float32 [1]; strings [1] were due'),
        ("card", None, 'there is no output "card"'),
        ("label", texts(*NAMES[:9]), 'output "label" is strings [9]; strings [10] were due'),
        ("label", texts(*NAMES, shape=(CLASSES, 1)), 'output "label" is strings [10, 1]; strings [10]'),
        ("label", texts(*NAMES[:9], b"\xff"), "output \"label\" of class 9 is not UTF-8: b'\\xff'"),
        ("label", np.arange(CLASSES), 'output "label" is int64 [10]; strings [10] were due'),
        ("label", None, 'there is no output "label"'),
    ],
)
async def test_what_is_no_description_costs_a_version_its_labels_or_its_card_only(
    output: str, said: np.ndarray | None, why: str
) -> None:
    with capture_logs() as lines:
        async with running(OddReplica(says={output: said})) as fake, gateway_over(fake) as (up, client):
            assert await first_label(client) == ("7" if output == "label" else "class-7")
            card = up.catalog.version("digits", 1).card
            assert card == ({} if output == "card" else {"schema": 1, "labels": list(LABELS)})
            assert (await client.get("/page/state")).status_code == 200
            for _ in range(3):
                await up.catalog.refreshed()
    told = [line for line in lines if line["event"] == f"a version's signature describe gives no {output}"]
    assert len(told) == 1
    assert told[0]["error"].startswith(why)


async def test_a_describe_that_takes_something_else_describes_nothing() -> None:
    async def refuse(_request: Any) -> None:
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "indices[9] = 9 is not in [0, 9)")

    async with running(OddReplica(before_describe=refuse)) as fake, gateway_over(fake) as (_, client):
        assert await first_label(client) == "7"


async def test_what_is_no_metadata_is_told_once_and_ends_nothing() -> None:
    class Garbled(FakeReplica):
        async def metadata(self, request: Any) -> Any:
            response = await super().metadata(request)
            if request.model_spec.name == "broken":
                response.metadata["signature_def"].value = b"\xff"
            return response

    fake = Garbled(versions={"broken": {1}, "digits": {1}})
    with capture_logs() as lines:
        async with (
            running(fake),
            gateway_over(fake, models=("broken", "digits"), wait=False) as (up, client),
        ):
            await until(lambda: bool(up.catalog.versions("digits")))
            for _ in range(3):
                await up.catalog.refreshed()
            assert await first_label(client) == "class-7"
            assert up.catalog.missing() == ["broken"]
    told = [line for line in lines if line["event"] == "cannot learn about a version"]
    assert [(line["model"], line["version"]) for line in told] == [("broken", 1)]


async def test_a_describe_that_hangs_holds_up_no_other_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "DESCRIBE_TIMEOUT_S", 3600.0)
    monkeypatch.setattr(catalog, "LEARN_PATIENCE_S", 0.05)
    gate = asyncio.Event()

    async def hang(request: Any) -> None:
        if request.model_spec.name == "a":
            await gate.wait()

    fake = OddReplica(versions={"a": {1}, "digits": {1}}, before_describe=hang)
    async with running(fake), gateway_over(fake, models=("a", "digits"), wait=False) as (up, client):
        await until(lambda: bool(up.catalog.versions("digits")))
        fake.versions["digits"] = {1, 2}
        await until(lambda: 2 in up.catalog.versions("digits"))
        assert await first_label(client) == "class-7"
        assert up.catalog.missing() == ["a"]
        gate.set()
        await up.catalog.ready()


async def test_a_version_whose_describe_always_fails_is_served_without_labels_until_it_can_say_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(learning, "LONGEST_PAUSE_S", 0.0)
    asked, fails = [], True

    async def crash(request: Any) -> None:
        asked.append(request.model_spec.version.value)
        if fails:
            raise Refusal(grpc.StatusCode.INTERNAL, "the lookup table is broken")

    fake = OddReplica(before_describe=crash)
    with capture_logs() as lines:
        async with running(fake), gateway_over(fake, wait=False) as (up, client):
            await up.catalog.ready()
            assert len(asked) >= learning.DESCRIBE_ATTEMPTS
            assert await first_label(client) == "7"
            fails = False
            await up.catalog.refreshed()
            assert await first_label(client) == "class-7"
            before = len(asked)
            await up.catalog.refreshed()
            assert len(asked) == before
    assert [line["event"] for line in lines].count("cannot learn about a version") == 1
    assert [line["event"] for line in lines].count("a version is served") == 1


async def test_a_version_that_cannot_say_its_labels_leaves_the_others_the_traffic() -> None:
    async def crash(request: Any) -> None:
        if request.model_spec.version.value == 2:
            raise Refusal(grpc.StatusCode.INTERNAL, "the lookup table is broken")

    fake = OddReplica(before_describe=crash)
    async with running(fake), gateway_over(fake) as (up, client):
        fake.versions["digits"] = {1, 2}
        while 2 not in up.catalog.versions("digits"):
            await up.catalog.refreshed()
        assert await first_label(client) == "class-7"
        named = await client.post("/v1/models/digits/versions/2:classify", content=grey_png(200), headers=PNG)
        assert named.json()["results"][0]["classes"][0]["label"] == "7"


async def test_what_cannot_be_described_is_asked_ever_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    async def crash(_request: Any) -> None:
        nonlocal asked
        asked += 1
        raise Refusal(grpc.StatusCode.INTERNAL, "the lookup table is broken")

    monkeypatch.setattr(learning, "LONGEST_PAUSE_S", 3600.0)
    monkeypatch.setattr(learning, "FIRST_PAUSE_S", 3600.0)
    async with running(OddReplica(before_describe=crash)) as fake, gateway_over(fake) as (up, _client):
        before = asked
        for _ in range(5):
            await up.catalog.refreshed()
        assert asked == before
        fake.versions["digits"] = set()
        await up.catalog.refreshed()
        fake.versions["digits"] = {1}
        await up.catalog.refreshed()
        assert asked > before, "the version was gone; this one is another"


class LabelledLate(FakeReplica):
    """Says after a while that it knows no label."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.answer = asyncio.Event(), asyncio.Event()

    async def metadata(self, request: Any) -> Any:
        if request.model_spec.version_label:
            self.asked.set()
            await self.answer.wait()
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "Unrecognized servable version label: latest")
        return await super().metadata(request)


async def test_a_model_that_goes_while_a_label_of_it_is_asked_for_is_not_found() -> None:
    fake = LabelledLate()
    async with running(fake), gateway_over(fake) as (up, client):
        path = "/v1/models/digits/labels/latest:classify"
        asked = asyncio.create_task(client.post(path, content=grey_png(200), headers=PNG))
        await fake.asked.wait()
        up.catalog.set_models(["numbers"])
        fake.answer.set()
        refused(await asked, 404, "not-found")


async def test_a_new_version_answers_once_as_many_replicas_have_it() -> None:
    """The first replica that loads it would otherwise get everything."""
    first, second = ScriptedReplica(), ScriptedReplica()
    async with running(first), running(second), gateway_over(first, second) as (up, client):

        async def answering(path: str) -> int:
            answer = await client.post(path, content=grey_png(200), headers=PNG)
            assert answer.status_code == 200, answer.text
            return int(answer.json()["version"])

        first.versions["digits"] = {1, 2}
        await until(lambda: 2 in up.catalog.versions("digits"))
        assert await answering(PATH) == 1
        assert await answering("/v1/models/digits/labels/stable:classify") == 1
        assert await answering("/v1/models/digits/labels/latest:classify") == 2
        (model,) = (await client.get("/v1/models")).json()["models"]
        assert [(each["version"], each["available_on"]) for each in model["versions"]] == [(1, 2), (2, 1)]
        second.versions["digits"] = {1, 2}
        await until(lambda: up.pool.availability("digits") == {1: 2, 2: 2})
        assert await answering(PATH) == 2


async def test_the_default_model_is_the_one_that_is_set() -> None:
    fake = FakeReplica(versions={"digits": {1}, "other": {4}})
    async with (
        running(fake),
        gateway_over(fake, models=("digits", "other"), default_model="other") as (_, client),
    ):
        answer = await client.post("/v1/classify", content=grey_png(0), headers=PNG)
        assert answer.json()["model"] == "other"
        models = (await client.get("/v1/models")).json()["models"]
        assert [(each["name"], each["default"]) for each in models] == [("digits", False), ("other", True)]


class Failing(FakeReplica):
    """Cannot load version 2."""

    async def status(self, request: Any) -> Any:
        response = await super().status(request)
        failed = response.model_version_status.add(version=2, state="END")
        failed.status.error_message = "out of memory"
        return response


async def test_a_version_is_shown_by_its_furthest_state_and_with_what_failed() -> None:
    one, other = Failing(), FakeReplica(versions={"digits": {1}})
    async with running(one), running(other), gateway_over(one, other) as (up, client):

        async def shown() -> dict[str, Any]:
            (model,) = (await client.get("/v1/models")).json()["models"]
            (found,) = [each for each in model["versions"] if each["version"] == 2]
            return dict(found)

        failed = {"version": 2, "state": "END", "available_on": 0, "error": "out of memory"}
        assert await shown() == failed
        other.versions["digits"] = {1, 2}
        await until(lambda: 2 in up.catalog.versions("digits"))
        assert await shown() == {**failed, "state": "AVAILABLE", "available_on": 1}


@dataclass
class Old(FakeReplica):
    """Had hundreds of versions before, one of which failed to load; has just unloaded `left`."""

    left: set[int] = field(default_factory=set)

    async def status(self, request: Any) -> Any:
        """Reports every version that it ever had, as TensorFlow Serving does."""
        response = await super().status(request)
        for version in (*self.left, *range(100, 400)):
            ended = response.model_version_status.add(version=version, state="END")
            if version == 200:
                ended.status.error_message = "out of memory"
        return response


async def test_of_versions_that_were_unloaded_the_newest_are_shown() -> None:
    replica = Old()
    async with running(replica), gateway_over(replica) as (up, client):
        (model,) = (await client.get("/v1/models")).json()["models"]
        assert [each["version"] for each in model["versions"]] == [1, 200, *range(390, 400)]
        every = (await client.get("/v1/models/digits")).json()["model_version_status"]
        assert len(every) == 301, "TensorFlow Serving's own API tells of all"
        shown = {
            sample.labels["version"]
            for family in up.gateway.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "sluice_model_version_state"
        }
        assert shown == {"1", "200"}, "series would pile up"
        replica.versions["digits"] = {2}
        replica.left = {1}
        await until(lambda: 2 in up.catalog.versions("digits"))
        assert counted(up, "sluice_model_version_state", version="1", state="END") == 1

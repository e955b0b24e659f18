"""When replicas are asked which versions they have: for requests that this can help, and no others."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from serving import catalog
from tests.doors.replica import ScriptedReplica
from tests.support.fake_replica import FakeReplica, running, until
from tests.support.gateways import gateway_over
from tests.support.http import PATH, PNG, grey_png, refused


@dataclass
class AskedReplica(ScriptedReplica):
    """Counts how often it is asked which versions it has."""

    asked: int = 0

    async def status(self, request: Any) -> Any:
        self.asked += 1
        return await super().status(request)


@dataclass
class Late(FakeReplica):
    """Reports its versions only once `may` is set."""

    may: asyncio.Event = field(default_factory=asyncio.Event)

    async def status(self, request: Any) -> Any:
        await self.may.wait()
        return await super().status(request)


async def test_who_asks_before_the_gateway_has_asked_its_replicas_waits_for_that() -> None:
    fake = Late()
    async with running(fake), gateway_over(fake, wait=False) as (up, client):
        asked = asyncio.create_task(client.post(PATH, content=grey_png(200), headers=PNG))
        await until(lambda: up.gateway.admission.in_flight == 1 or asked.done())
        fake.may.set()
        assert (await asked).status_code == 200


async def test_requests_for_a_model_that_is_nowhere_keep_no_replica_busy() -> None:
    fake = AskedReplica()
    async with (
        running(fake),
        gateway_over(fake, models=("absent", "digits"), wait=False, status_interval_s=60) as (up, client),
    ):
        await until(lambda: bool(up.catalog.versions("digits")))
        before, began = fake.asked, time.monotonic()
        for _ in range(8):
            answer = await client.post("/v1/models/absent:classify", content=grey_png(200), headers=PNG)
            assert answer.status_code == 503, answer.text
        rounds = (fake.asked - before) / 2
        assert 0 < rounds <= (time.monotonic() - began) / catalog.LEAST_INTERVAL_S + 1


async def test_who_names_a_version_that_was_unloaded_is_told_and_no_replica_is_asked_anew() -> None:
    """No other version may answer. If none is named, replicas are asked, and the new version answers."""
    fake = AskedReplica()
    async with running(fake), gateway_over(fake, status_interval_s=60) as (_, client):
        before = fake.asked
        fake.versions = {"digits": {2}}
        named = "/v1/models/digits/versions/1:classify"
        refused(await client.post(named, content=grey_png(200), headers=PNG), 404, "not-found")
        assert fake.asked == before
        answer = await client.post(PATH, content=grey_png(200), headers=PNG)
        assert answer.json()["version"] == 2
        assert fake.asked > before


async def test_who_names_a_label_that_no_replica_knows_is_told_and_none_is_asked_anew() -> None:
    fake = AskedReplica()
    async with running(fake), gateway_over(fake, status_interval_s=60) as (_, client):
        before = fake.asked
        answer = await client.post(
            "/v1/models/digits/labels/canary:classify", content=grey_png(200), headers=PNG
        )
        assert 'know no version label "canary"' in refused(answer, 404, "not-found")
        assert fake.asked == before


async def test_who_waits_for_a_place_gets_it_at_a_replica_that_is_found_to_have_the_version() -> None:
    entered = asyncio.Event()

    async def hang(_request: Any) -> None:
        entered.set()
        await asyncio.Event().wait()

    busy, late = FakeReplica(before_predict=hang), FakeReplica(versions={"digits": set()})
    async with (
        running(busy),
        running(late),
        gateway_over(busy, late, calls_per_replica=1) as (up, client),
    ):
        first = asyncio.create_task(client.post(PATH, content=grey_png(200), headers=PNG))
        await entered.wait()
        headers = PNG | {"x-request-timeout": "10"}
        second = asyncio.create_task(client.post(PATH, content=grey_png(200), headers=headers))
        await until(lambda: up.gateway.batcher.depth() == 1)
        late.versions = {"digits": {1}}
        assert (await second).status_code == 200
        first.cancel()


async def test_replicas_that_are_given_by_a_name_are_found() -> None:
    async with running(FakeReplica()) as fake:
        port = fake.address.rpartition(":")[2]
        async with gateway_over(FakeReplica(address=f"dns:localhost:{port}")) as (_, client):
            assert (await client.post(PATH, content=grey_png(200), headers=PNG)).status_code == 200

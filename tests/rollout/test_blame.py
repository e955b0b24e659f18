"""Which version is to blame for what its callers, and the copies of their requests, do not get."""

from __future__ import annotations

import asyncio
import base64
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from serving import tensors
from serving.main import Running
from serving.routing import Split
from tests.rollout.replicas import PICTURES, VersionedReplica
from tests.support.fake_replica import Refusal, running, until
from tests.support.gateways import gateway_over

CLASSIFY = "/v1/models/digits:classify"
# A second is a fair time for an answer; callers wait somewhat longer.
TIMEOUT_S = 1.5


async def hanging() -> None:
    await asyncio.Event().wait()


@asynccontextmanager
async def split_over(
    replica: VersionedReplica, split: Split, limit_s: float | None = None, **settings: Any
) -> AsyncIterator[tuple[Running, httpx.AsyncClient]]:
    """A gateway before a replica that has both versions, routing so."""
    replica.versions = {"digits": {1, 2}}
    async with running(replica), gateway_over(replica, **settings) as (gateway, client):
        await until(lambda: set(gateway.catalog.versions("digits")) == {1, 2})
        gateway.gateway.steering.set_split("digits", split, limit_s)
        yield gateway, client


async def ask(client: httpx.AsyncClient, path: str = CLASSIFY, **headers: str) -> int:
    headers = {"content-type": "image/png"} | headers
    return (await client.post(path, content=PICTURES[1], headers=headers)).status_code


def pairs(gateway: Running) -> dict[str, float]:
    """What was counted of copies."""
    counts = gateway.gateway.steering.counts("digits")
    return {
        kind: counts[f"{kind}/2"]
        for kind in ("copies", "candidate-failed", "stable-failed")
        if f"{kind}/2" in counts
    }


async def test_a_candidate_that_hangs_is_slow_though_its_callers_leave_before_the_deadline() -> None:
    asked = asyncio.Event()

    async def noting() -> None:
        asked.set()
        await hanging()

    replica = VersionedReplica(behaviour={2: noting})
    async with split_over(replica, Split(1, 2, 1.0, salt="x"), 1e-6) as (gateway, client):
        caller = asyncio.create_task(ask(client))
        await asked.wait()
        caller.cancel()
        counts = gateway.gateway.steering.counts
        await until(lambda: counts("digits").get("slow/2") == 1.0)
        assert counts("digits")["requests/2"] == 1.0


class WithoutNumbers(VersionedReplica):
    """The last image of each batch of several gets no numbers by some versions."""

    sick: tuple[int, ...] = (1, 2)

    async def predict(self, request: Any) -> Any:
        response = await super().predict(request)
        of = request.model_spec.version.value
        if "scores" in response.outputs and of in self.sick and self.batches[-1] > 1:
            scores = np.array(tensors.from_proto(response.outputs["scores"]))
            scores[-1] = np.nan
            response.outputs["scores"].CopyFrom(tensors.to_proto(scores))
        return response


async def test_a_version_fails_that_gives_no_numbers_for_one_image_of_a_batch() -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def waiting() -> None:
        asked.set()
        await go_on.wait()

    replica = WithoutNumbers(behaviour={2: waiting})
    split = Split(1, 2, 1.0, salt="x")
    async with split_over(replica, split, calls_per_replica=1, max_batch=4) as (gateway, client):
        callers = [asyncio.create_task(ask(client))]
        await asked.wait()
        callers += [asyncio.create_task(ask(client)) for _ in range(4)]
        await until(lambda: gateway.gateway.batcher.depth() == 4)
        go_on.set()
        assert sorted(await asyncio.gather(*callers)) == [200, 200, 200, 200, 500]
        counts = gateway.gateway.steering.counts("digits")
        assert (counts["calls/2"], counts["failed/2"]) == (2.0, 1.0)


async def test_a_batch_is_evidence_in_which_one_request_was_routed() -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def waiting() -> None:
        asked.set()
        await go_on.wait()

    replica = VersionedReplica(behaviour={2: waiting})
    split = Split(1, 2, 1.0, salt="x")
    async with split_over(replica, split, calls_per_replica=1, max_batch=4) as (gateway, client):
        callers = [asyncio.create_task(ask(client))]
        await asked.wait()
        named = CLASSIFY.replace(":classify", "/versions/2:classify")
        callers += [asyncio.create_task(ask(client, path)) for path in (named, CLASSIFY)]
        await until(lambda: gateway.gateway.batcher.depth() == 2)
        go_on.set()
        assert await asyncio.gather(*callers) == [200] * 3
        assert gateway.gateway.steering.counts("digits")["calls/2"] == 2.0


@pytest.mark.parametrize(("sick", "failed"), [(1, "stable-failed"), (2, "candidate-failed")])
async def test_a_version_fails_that_gives_no_numbers_for_one_image_of_a_copied_request(
    sick: int, failed: str
) -> None:
    """The label of such an image would be compared: of no number one is the largest."""
    replica = WithoutNumbers()
    replica.sick = (sick,)
    image = {"b64": base64.b64encode(PICTURES[1]).decode()}
    async with split_over(replica, Split(1, 2, 0.0, 1.0, "x"), calls_per_replica=1) as (gateway, client):
        answer = await client.post(CLASSIFY, json={"images": [image] * 3})
        assert answer.status_code == 200, answer.text
        assert [sum("error" in each for each in answer.json()["results"])] == [sick == 1]
        await until(lambda: "copies" in pairs(gateway))
        assert pairs(gateway) == {"copies": 1.0, failed: 1.0}
        assert not any(name.startswith("compared") for name in gateway.gateway.steering.counts("digits"))


async def test_a_request_without_any_image_that_can_be_read_is_not_copied(
    caplog: pytest.LogCaptureFixture,
) -> None:
    replica = VersionedReplica()
    async with split_over(replica, Split(1, 2, 0.0, 1.0, "x")) as (gateway, client):
        headers = {"content-type": "image/png"}
        assert (await client.post(CLASSIFY, content=b"nonsense", headers=headers)).status_code == 400
        await until(lambda: not gateway.gateway.steering._copies)
        assert (pairs(gateway), replica.batches) == ({}, [])
    gc.collect()  # asyncio tells then of copies that failed
    assert caplog.text == ""


async def test_a_copy_that_hangs_is_a_failure_of_the_candidate() -> None:
    replica = VersionedReplica(behaviour={2: hanging})
    split = Split(1, 2, 0.0, 1.0, "x")
    async with split_over(replica, split, request_timeout_s=TIMEOUT_S) as (gateway, client):
        assert await ask(client) == 200
        await until(lambda: "copies" in pairs(gateway))
        assert pairs(gateway) == {"copies": 1.0, "candidate-failed": 1.0}


@pytest.mark.parametrize(("timeout_s", "failed"), [(TIMEOUT_S, 1.0), (0.9, None)], ids=["fair", "hasty"])
@pytest.mark.parametrize("api", ["images", "tensors"])
async def test_a_call_without_an_answer_is_a_failure_of_its_version_if_it_had_a_fair_time(
    api: str, timeout_s: float, failed: float | None
) -> None:
    replica = VersionedReplica(behaviour={2: hanging})
    async with split_over(replica, Split(1, 2, 1.0, salt="x")) as (gateway, client):
        if api == "images":
            answer = await client.post(
                CLASSIFY,
                content=PICTURES[1],
                headers={"content-type": "image/png", "x-request-timeout": str(timeout_s)},
            )
        else:
            answer = await client.post(
                "/v1/models/digits:predict",
                json={"instances": [[[[0]] * 8] * 8], "signature_name": "serving_default"},
                headers={"x-request-timeout": str(timeout_s)},
            )
        assert answer.status_code == 504, answer.text
        await until(lambda: not any(each.in_flight for each in gateway.gateway.pool.replicas))
        counts = gateway.gateway.steering.counts("digits")
        assert (counts.get("calls/2"), counts.get("failed/2")) == (failed, failed)


async def test_a_hasty_request_s_copy_blames_nobody() -> None:
    asked = asyncio.Event()

    async def once() -> None:
        if not asked.is_set():
            asked.set()
            await hanging()

    split = Split(1, 2, 0.0, 1.0, "x")
    async with split_over(VersionedReplica(behaviour={2: once}), split) as (gateway, client):
        assert await ask(client, **{"x-request-timeout": "0.9"}) == 200
        await asked.wait()
        copies = gateway.gateway.steering._copies
        await until(lambda: not copies)
        assert pairs(gateway) == {}
        assert await ask(client) == 200
        await until(lambda: not copies)
        assert pairs(gateway) == {"copies": 1.0}


async def test_a_stable_version_that_hangs_is_held_against_it_as_a_copy_is_against_the_candidate() -> None:
    replica = VersionedReplica(behaviour={1: hanging})
    split = Split(1, 2, 0.0, 1.0, "x")
    async with split_over(replica, split, request_timeout_s=TIMEOUT_S) as (gateway, client):
        assert await ask(client) == 504
        await until(lambda: "copies" in pairs(gateway))
        assert pairs(gateway) == {"copies": 1.0, "stable-failed": 1.0}


@pytest.mark.parametrize(
    ("code", "status", "counted"),
    [
        (grpc.StatusCode.INTERNAL, 500, {"copies": 1.0, "stable-failed": 1.0}),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 503, {}),
    ],
)
async def test_only_a_fault_of_stable_s_own_makes_a_pair(
    code: grpc.StatusCode, status: int, counted: dict[str, float]
) -> None:
    async def refuse() -> None:
        raise Refusal(code, "not now")

    split = Split(1, 2, 0.0, 1.0, "x")
    async with split_over(VersionedReplica(behaviour={1: refuse}), split) as (gateway, client):
        assert await ask(client) == status
        await until(lambda: not gateway.gateway.steering._copies)
        assert pairs(gateway) == counted

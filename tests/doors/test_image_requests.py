"""The image API at its edges: what is asked without a word too many, as many as may be, failing half-way."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import grpc
import httpx
import pytest

from serving import tensors
from tests.doors.replica import ScriptedReplica
from tests.doors.wire import PATH, PNG
from tests.support.fake_replica import Refusal, until
from tests.support.gateways import counted, gateway_over
from tests.support.http import grey_png, refused

NDJSON = {"accept": "Application/X-NDJSON"}


def images(count: int) -> dict[str, Any]:
    """A body of so many images, each brighter than the one before."""
    return {"images": [base64.b64encode(grey_png(25 * number)).decode() for number in range(count)]}


async def test_media_types_are_the_same_in_upper_case(client: httpx.AsyncClient) -> None:
    answer = await client.post(PATH, content=grey_png(9), headers={"content-type": "IMAGE/PNG", **NDJSON})
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.json()["index"] == 0


async def test_json_of_which_nothing_is_said_may_begin_with_blanks(client: httpx.AsyncClient) -> None:
    answer = await client.post(PATH, content=b"\r\n " + json.dumps(images(1)).encode())
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("body", ["{}", '{"signature_name": "x"}', '{"context": {"y": 1}}'])
async def test_json_that_lacks_examples_is_refused_in_the_words_of_whose_it_may_be(
    client: httpx.AsyncClient, body: str
) -> None:
    answer = await client.post(PATH, content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, list(answer.json())) == (400, ["error"])


@pytest.mark.parametrize(
    ("content_type", "said"), [("x" * 5000 + "/y", f'"{"x" * 100}"'), ("", "missing"), ("a/b", '"a/b"')]
)
async def test_a_content_type_that_is_not_taken_is_told_in_short(
    client: httpx.AsyncClient, content_type: str, said: str
) -> None:
    answer = await client.post(PATH, content=b"nonsense", headers={"content-type": content_type})
    assert refused(answer, 415, "unsupported-media").startswith(f"the content type is {said}; supported are ")
    assert answer.json()["stage"] == "admission"


async def test_as_many_images_are_taken_as_may_be(replica: ScriptedReplica) -> None:
    async with gateway_over(replica, max_images=3) as (up, client):
        answer = await client.post(PATH, json=images(3))
        assert len(answer.json()["results"]) == 3
        assert counted(up, "sluice_images_total", model="digits", version="1") == 3
        for count, stage in ((4, "admission"), (0, "decode")):
            answer = await client.post(PATH, json=images(count))
            refused(answer, 400, "invalid-input")
            assert answer.json()["stage"] == stage


async def test_lines_of_which_the_rest_fails_end_with_why(replica: ScriptedReplica) -> None:
    go_on = asyncio.Event()

    async def fail_later(request: Any) -> None:
        if tensors.from_proto(request.inputs["images"]).max() > 40:
            await go_on.wait()
            raise Refusal(grpc.StatusCode.INTERNAL, "out of memory on device")

    replica.before_predict = fail_later
    async with gateway_over(replica, max_batch=2) as (up, client):
        request = client.build_request("POST", PATH, json=images(4), headers=NDJSON)
        answer = await client.send(request, stream=True)
        lines = []
        async for line in answer.aiter_lines():
            lines.append(json.loads(line))
            if len(lines) == 2:
                go_on.set()
        assert answer.status_code == 200
        assert counted(up, "sluice_stage_duration_seconds_count", stage="read") == 1
    assert [line.get("index") for line in lines] == [0, 1, None]
    assert {line["model"] for line in lines[:2]} == {"digits"}
    assert lines[-1].keys() == {"error"}
    assert lines[-1]["error"]["type"] == "internal"
    assert "out of memory on device" in lines[-1]["error"]["detail"]


async def test_once_one_image_has_failed_the_others_of_its_request_are_not_computed(
    replica: ScriptedReplica,
) -> None:
    async def fail(_request: Any) -> None:
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT)

    replica.before_predict = fail
    async with gateway_over(replica, max_batch=1, calls_per_replica=1) as (up, client):
        answer = await client.post(PATH, json=images(10))
        assert answer.status_code == 400
        await until(lambda: up.gateway.batcher.depth() == 0 and up.pool.replicas[0].in_flight == 0)
        assert len(replica.batches) < 5


async def test_batches_are_filled_up_to_the_sizes_that_are_set(replica: ScriptedReplica) -> None:
    async with gateway_over(replica, batch_sizes=(4, 8), max_batch=8) as (_, client):
        assert (await client.post(PATH, content=grey_png(200), headers=PNG)).json()["results"][0]["classes"]
        assert len((await client.post(PATH, json=images(5))).json()["results"]) == 5
    assert replica.batches[0] == 4
    assert set(replica.batches) <= {4, 8}

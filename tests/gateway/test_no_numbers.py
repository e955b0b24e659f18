"""Images for which a model has no numbers get an error each, and the others of their request classes."""

from __future__ import annotations

import base64
import json

import grpc
import grpc.aio
import httpx
import pytest

from serving import protos
from tests.support.fake_replica import NoNumbers, running
from tests.support.gateways import gateway_over
from tests.support.http import grey_png

PATH = "/v1/models/digits:classify"
VALUES = [255, 100, 255, 200, 30]
NAMED = [None, "class-3", None, "class-7", "class-1"]


async def posted(client: httpx.AsyncClient, *values: int, accept: str = "*/*") -> httpx.Response:
    images = [{"b64": base64.b64encode(grey_png(value)).decode()} for value in values]
    return await client.post(PATH, json={"images": images, "top_k": 1}, headers={"accept": accept})


def label_of(result: dict[str, object]) -> str | None:
    match result:
        case {"error": {"type": "internal", "detail": str(text)}}:
            assert "not a finite number" in text
            return None
        case {"classes": [{"label": str(label)}]}:
            return label
    raise AssertionError(result)


@pytest.mark.parametrize("max_batch", [1, 8], ids=["batches of their own", "a batch of several"])
async def test_an_image_without_numbers_costs_the_others_of_its_request_nothing(max_batch: int) -> None:
    async with (
        running(NoNumbers()) as fake,
        gateway_over(fake, max_batch=max_batch, calls_per_replica=1) as (up, client),
        grpc.aio.insecure_channel(up.grpc_address) as channel,
    ):
        answer = await posted(client, *VALUES)
        assert answer.status_code == 200, answer.text
        assert [label_of(each) for each in answer.json()["results"]] == NAMED
        answer = await posted(client, *VALUES, accept="application/x-ndjson")
        lines = {line["index"]: label_of(line) for line in map(json.loads, answer.text.splitlines())}
        assert lines == dict(enumerate(NAMED))
        request, response = protos.methods(protos.IMAGE_CLASSIFICATION)["Classify"]
        classify = channel.unary_unary(
            f"/{protos.IMAGE_CLASSIFICATION}/Classify", request.SerializeToString, response.FromString
        )
        found = await classify(protos.ClassifyRequest(images=map(grey_png, VALUES), top_k=1))
        assert [each.error.kind for each in found.results] == ["internal", "", "internal", "", ""]
        assert [[each.label for each in result.classes] for result in found.results] == [
            [] if label is None else [label] for label in NAMED
        ]


async def test_a_request_of_which_no_image_got_numbers_has_failed() -> None:
    async with (
        running(NoNumbers()) as fake,
        gateway_over(fake) as (up, client),
        grpc.aio.insecure_channel(up.grpc_address) as channel,
    ):
        for values in ([255], [255, 255]):
            answer = await posted(client, *values)
            assert answer.status_code == 500
            assert answer.json()["type"] == "urn:sluice:problem:internal"
            request, response = protos.methods(protos.IMAGE_CLASSIFICATION)["Classify"]
            classify = channel.unary_unary(
                f"/{protos.IMAGE_CLASSIFICATION}/Classify", request.SerializeToString, response.FromString
            )
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await classify(protos.ClassifyRequest(images=map(grey_png, values)))
            assert caught.value.code() is grpc.StatusCode.INTERNAL

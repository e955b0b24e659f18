"""The HTTP API, over a scripted replica: good answers, and a clear refusal of everything that is not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import psutil
import pytest

from serving.images import FORMATS
from tests.support.fake_replica import FakeReplica, Refusal, running, until
from tests.support.gateways import counted, gateway_over
from tests.support.http import PATH, PNG, grey_png, refused
from tests.support.pictures import encoded, gradient, png_bomb


@pytest.fixture
async def replica() -> AsyncIterator[FakeReplica]:
    async with running(FakeReplica()) as fake:
        yield fake


@pytest.fixture
async def client(replica: FakeReplica) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway_over(replica) as (_, client):
        yield client


@pytest.mark.parametrize("path", ["/v1/classify", PATH, "/v1/models/digits/versions/1:classify"])
async def test_an_image_gets_its_classes(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.post(path, params={"top_k": 2}, content=grey_png(200), headers=PNG)
    assert answer.status_code == 200
    found = answer.json()
    assert (found["model"], found["version"]) == ("digits", 1)
    (result,) = found["results"]
    assert [each["label"] for each in result["classes"]] == ["class-7", "class-0"]
    assert result["classes"][0]["index"] == 7
    assert result["classes"][0]["score"] == pytest.approx(0.91)


async def test_a_form_of_images_gets_a_result_for_each_and_bad_ones_an_error(
    client: httpx.AsyncClient,
) -> None:
    files = [
        ("images", ("a.png", grey_png(10), "image/png")),
        ("images", ("b.png", b"nonsense", "image/png")),
        ("images", ("c.jpg", encoded(gradient(64, 64), "JPEG"), "image/jpeg")),
    ]
    answer = await client.post(PATH, files=files)
    assert answer.status_code == 200
    first, second, third = answer.json()["results"]
    assert [each["file"] for each in (first, second, third)] == ["a.png", "b.png", "c.jpg"]
    assert first["classes"][0]["label"] == "class-0"
    assert second["error"]["type"] == "bad-image"
    assert "classes" not in second
    assert len(third["classes"]) == 5


async def test_images_of_one_request_share_batches(client: httpx.AsyncClient, replica: FakeReplica) -> None:
    files = [("images", (f"{n}.png", grey_png(n), "image/png")) for n in range(100)]
    answer = await client.post(PATH, files=files)
    assert len(answer.json()["results"]) == 100
    assert sum(replica.batches) == 100
    assert max(replica.batches) == 32


async def test_default_top_k_is_five_and_all_can_be_asked_for(client: httpx.AsyncClient) -> None:
    answer = await client.post(PATH, content=grey_png(0), headers=PNG)
    assert len(answer.json()["results"][0]["classes"]) == 5
    answer = await client.post(PATH, params={"top_k": 10}, content=grey_png(0), headers=PNG)
    scores = [each["score"] for each in answer.json()["results"][0]["classes"]]
    assert len(scores) == 10
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("top_k", ["0", "-1", "11", "many", "1.5", "9" * 30])
async def test_top_k_out_of_range_is_refused(client: httpx.AsyncClient, top_k: str) -> None:
    answer = await client.post(PATH, params={"top_k": top_k}, content=grey_png(0), headers=PNG)
    assert "top_k" in refused(answer, 400, "invalid-input")


async def test_no_body_is_refused(client: httpx.AsyncClient) -> None:
    assert "no body" in refused(await client.post(PATH, headers=PNG), 400, "invalid-input")


async def test_bytes_that_are_no_image_are_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post(PATH, content=b"hello", headers=PNG)
    assert "supported kind: JPEG, PNG" in refused(answer, 400, "bad-image")


async def test_a_truncated_jpeg_is_refused(client: httpx.AsyncClient) -> None:
    data = encoded(gradient(200, 200), "JPEG")
    answer = await client.post(PATH, content=data[: len(data) // 2], headers={"content-type": "image/jpeg"})
    assert "damaged" in refused(answer, 400, "bad-image")


async def test_a_png_bomb_is_refused_from_its_header_and_memory_stays_flat(
    client: httpx.AsyncClient,
) -> None:
    bomb = png_bomb()
    before = psutil.Process().memory_info().rss
    for _ in range(3):
        answer = await client.post(PATH, content=bomb, headers=PNG)
        assert "30000×30000" in refused(answer, 413, "too-large")
    # Decoded, even at one byte a pixel, it would be 900 MB.
    assert psutil.Process().memory_info().rss - before < 50 * 2**20


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "", None])
@pytest.mark.parametrize("image_format", FORMATS)
async def test_an_image_of_which_nothing_is_said_is_classified(
    client: httpx.AsyncClient, content_type: str | None, image_format: str
) -> None:
    """As `curl --data-binary @FILE` and `requests.post(URL, data=FILE)` send it."""
    headers = {} if content_type is None else {"content-type": content_type}
    image = encoded(gradient(8, 8), image_format)
    answer = await client.post(PATH, content=image, headers=headers, params={"top_k": 2})
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["results"][0]["classes"]) == 2


@pytest.mark.parametrize(
    ("content_type", "data"),
    [
        ("text/plain", grey_png(0)),
        ("image/tiff", grey_png(0)),
        ("application/x-www-form-urlencoded", b"image=seven.png"),
        ("", b"RIFF\x00\x00\x00\x00WAVE"),
        ("", b"[1]"),
    ],
)
async def test_other_content_types_are_refused_naming_those_taken(
    client: httpx.AsyncClient, content_type: str, data: bytes
) -> None:
    answer = await client.post(PATH, content=data, headers={"content-type": content_type})
    detail = refused(answer, 415, "unsupported-media")
    assert "image/png" in detail
    assert "multipart/form-data" in detail


async def test_unknown_models_and_versions_are_refused_naming_those_that_exist(
    client: httpx.AsyncClient,
) -> None:
    answer = await client.post("/v1/models/resent:classify", content=grey_png(0), headers=PNG)
    assert refused(answer, 404, "not-found") == 'model "resent" is not configured; there are: digits'
    answer = await client.post("/v1/models/digits/versions/9:classify", content=grey_png(0), headers=PNG)
    assert "there are: 1" in refused(answer, 404, "not-found")
    answer = await client.post("/v1/models/digits/versions/one:classify", content=grey_png(0), headers=PNG)
    assert "versions are numbers" in refused(answer, 400, "invalid-input")


async def test_unknown_paths_and_methods_are_problem_documents(client: httpx.AsyncClient) -> None:
    assert "/nowhere" in refused(await client.get("/nowhere"), 404, "not-found")
    answer = await client.get(PATH)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("data", [b"", b"--x--\r\n", b"--x\r\ngarbage"])
async def test_malformed_forms_are_refused(client: httpx.AsyncClient, data: bytes) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x"}
    refused(await client.post(PATH, content=data, headers=headers), 400, "invalid-input")
    headers = {"content-type": "multipart/form-data"}
    answer = await client.post(PATH, content=data, headers=headers)
    assert "boundary" in refused(answer, 400, "invalid-input")


async def test_a_replica_that_answers_nonsense_is_an_error_of_the_server(replica: FakeReplica) -> None:
    async def fail(_request: Any) -> None:
        raise Refusal(grpc.StatusCode.INTERNAL, "out of memory on device")

    async with gateway_over(replica) as (_, client):
        replica.before_predict = fail
        detail = refused(await client.post(PATH, content=grey_png(0), headers=PNG), 500, "internal")
        assert "out of memory on device" in detail


async def test_a_version_that_is_unloaded_in_the_middle_is_not_noticed(replica: FakeReplica) -> None:
    """The replica swaps 1 for 2 while a request for no version in particular is on its way."""

    async def swap(_request: Any) -> None:
        replica.versions = {"digits": {2}}

    async with gateway_over(replica, status_interval_s=3600.0) as (_, client):
        replica.before_predict = swap
        answer = await client.post(PATH, content=grey_png(0), headers=PNG)
        assert answer.status_code == 200, answer.text
        assert answer.json()["version"] == 2
        answer = await client.post("/v1/models/digits/versions/1:classify", content=grey_png(0), headers=PNG)
        assert "there are: 2" in refused(answer, 404, "not-found")


async def test_the_newest_version_waits_for_the_fleet() -> None:
    async with (
        running(FakeReplica()) as one,
        running(FakeReplica()) as two,
        gateway_over(one, two) as (running_gateway, client),
    ):
        two.versions = {"digits": {1, 2}}
        await until(lambda: 2 in running_gateway.catalog.versions("digits"))
        answer = await client.post(PATH, content=grey_png(0), headers=PNG)
        assert answer.json()["version"] == 1
        one.versions = {"digits": {1, 2}}
        async with asyncio.timeout(60):
            while answer.json()["version"] == 1:
                answer = await client.post(PATH, content=grey_png(0), headers=PNG)
        assert answer.json()["version"] == 2


async def test_a_model_without_describe_is_served_with_indices_for_labels() -> None:
    async with running(FakeReplica(describes=False)) as fake, gateway_over(fake) as (_, client):
        answer = await client.post(PATH, content=grey_png(200), headers=PNG)
        assert answer.json()["results"][0]["classes"][0]["label"] == "7"


async def test_a_model_that_takes_no_images_says_so() -> None:
    async with running(FakeReplica(shape=(8, 8, 2))) as fake, gateway_over(fake) as (_, client):
        answer = await client.post(PATH, content=grey_png(0), headers=PNG)
        assert "cannot classify images" in refused(answer, 400, "failed-precondition")


async def test_models_lists_versions_and_states(client: httpx.AsyncClient) -> None:
    (model,) = (await client.get("/v1/models")).json()["models"]
    assert model["name"] == "digits"
    assert model["default"] is True
    assert model["versions"] == [{"version": 1, "state": "AVAILABLE", "available_on": 1, "error": None}]


async def test_two_models_have_no_default() -> None:
    fake = FakeReplica(versions={"digits": {1}, "other": {4}})
    async with running(fake), gateway_over(fake, models=("digits", "other")) as (_, client):
        answer = await client.post("/v1/classify", content=grey_png(0), headers=PNG)
        assert "name one of: digits, other" in refused(answer, 400, "invalid-input")
        answer = await client.post("/v1/models/other:classify", content=grey_png(0), headers=PNG)
        assert (answer.json()["model"], answer.json()["version"]) == ("other", 4)


async def test_request_ids_are_taken_and_made(client: httpx.AsyncClient) -> None:
    answer = await client.get("/healthz", headers={"x-request-id": "abc-123"})
    assert answer.headers["x-request-id"] == "abc-123"
    made = [(await client.get("/healthz")).headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]
    odd = await client.get("/healthz", headers={"x-request-id": "a b"})
    assert odd.headers["x-request-id"] != "a b"


async def test_metrics_count_what_was_asked_and_bound_their_labels(replica: FakeReplica) -> None:
    async with gateway_over(replica) as (running_gateway, client):
        for _ in range(3):
            await client.post(PATH, content=grey_png(0), headers=PNG)
        await client.post(PATH, content=b"nonsense", headers=PNG)
        for name in ("a", "b", "c"):
            await client.post(f"/v1/models/{name}:classify", content=grey_png(0), headers=PNG)
        name = "sluice_requests_total"
        digits = {"protocol": "http", "model": "digits", "version": "1"}
        assert counted(running_gateway, name, **digits, outcome="ok") == 3
        assert counted(running_gateway, name, **digits, outcome="bad-image") == 1
        unknown = {"protocol": "http", "model": "", "version": ""}
        assert counted(running_gateway, name, **unknown, outcome="not-found") == 3
        text = (await client.get("/metrics")).text
        assert "sluice_request_duration_seconds_bucket" in text
        assert 'sluice_model_version_replicas{model="digits",version="1"} 1.0' in text


async def test_openapi_documents_every_route_with_real_examples(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert {
        "/healthz",
        "/readyz",
        "/metrics",
        "/v1/models",
        "/v1/classify",
        PATH.replace("digits", "{model}"),
    } <= set(document["paths"])
    operation = document["paths"]["/v1/models/{model}:classify"]["post"]
    example = operation["responses"]["200"]["content"]["application/json"]["example"]
    answer = (await client.post(PATH, content=grey_png(0), headers=PNG)).json()
    assert example.keys() == answer.keys()
    assert example["results"][0].keys() == answer["results"][0].keys()
    assert example["results"][0]["classes"][0].keys() == answer["results"][0]["classes"][0].keys()
    problem = operation["responses"]["404"]["content"]["application/problem+json"]["example"]
    real = (await client.post("/v1/models/resent:classify", content=grey_png(0), headers=PNG)).json()
    assert real | {"request_id": ""} == problem | {"request_id": ""}
    assert json.dumps(document)

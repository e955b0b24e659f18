"""The HTTP API, over a scripted replica: good answers, and a clear refusal of everything that is not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest

from serving.main import Running
from tests.support.fake_replica import FakeReplica, Refusal, running, until
from tests.support.gateways import counted, gateway_over
from tests.support.pictures import encoded, gradient, png_bomb

PNG = {"content-type": "image/png"}
PATH = "/v1/models/digits:classify"


def grey_png(value: int) -> bytes:
    return encoded(gradient(8, 8, "L").point(lambda _: value), "PNG")


@pytest.fixture
async def replica() -> AsyncIterator[FakeReplica]:
    async with running(FakeReplica()) as fake:
        yield fake


@pytest.fixture
async def client(replica: FakeReplica) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway_over(replica) as (_, client):
        yield client


def refused(answer: httpx.Response, status: int, kind: str) -> str:
    """Check that `answer` is a problem document of this status and kind; return its detail."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["type"] == f"urn:sluice:problem:{kind}"
    assert body["status"] == status
    assert body["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    return str(body["detail"])


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
    assert "taken are JPEG, PNG" in refused(answer, 400, "bad-image")


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


@pytest.mark.parametrize(
    "content_type", ["text/plain", "image/tiff", "application/x-www-form-urlencoded", ""]
)
async def test_other_content_types_are_refused_naming_those_taken(
    client: httpx.AsyncClient, content_type: str
) -> None:
    answer = await client.post(PATH, content=grey_png(0), headers={"content-type": content_type})
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


async def test_too_many_images_are_refused(replica: FakeReplica) -> None:
    async with gateway_over(replica, max_images=3) as (_, client):
        files = [("images", (f"{n}.png", grey_png(n), "image/png")) for n in range(4)]
        refused(await client.post(PATH, files=files), 400, "invalid-input")


async def send_raw(url: httpx.URL, head: str, chunks: list[bytes]) -> tuple[bytes, int]:
    """Send a request by hand, stopping as soon as an answer comes; the answer, and the chunks sent."""
    assert url.port is not None
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(head.encode() + b"\r\n")
    answer = asyncio.create_task(reader.read())
    sent = 0
    try:
        for chunk in chunks:
            await asyncio.wait([answer], timeout=0)
            if reader.at_eof() or answer.done():
                break
            writer.write(chunk)
            await writer.drain()
            sent += 1
    except ConnectionError:
        pass
    found = await answer
    writer.close()
    return found, sent


async def test_a_body_over_the_limit_is_refused_from_its_claimed_length(replica: FakeReplica) -> None:
    async with gateway_over(replica, max_body_bytes=10_000) as (_, client):
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 99999999999\r\n"
        )
        answer, _ = await send_raw(client.base_url, head, [])
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"99,999,999,999 bytes; at most 10,000" in answer


async def test_a_body_over_the_limit_is_refused_while_it_comes(replica: FakeReplica) -> None:
    """Chunked, so that no length is claimed, and without an end: only a refusal can end it."""
    async with gateway_over(replica, max_body_bytes=100_000) as (running_gateway, client):
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n"
        chunk = b"2710\r\n" + b"x" * 10_000 + b"\r\n"
        answer, _ = await send_raw(client.base_url, head, [chunk] * 11)
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"over 100,000 bytes" in answer
        assert running_gateway.gateway.admission.in_flight == 0
        assert (await client.post(PATH, content=grey_png(0), headers=PNG)).status_code == 200


async def test_a_full_gateway_refuses_at_once(replica: FakeReplica) -> None:
    entered, gate = asyncio.Event(), asyncio.Event()

    async def wait(_request: Any) -> None:
        entered.set()
        await gate.wait()

    async with gateway_over(replica, max_in_flight=1) as (running_gateway, client):
        replica.before_predict = wait
        first = asyncio.create_task(client.post(PATH, content=grey_png(0), headers=PNG))
        await entered.wait()
        answer = await client.post(PATH, content=grey_png(0), headers=PNG)
        refused(answer, 503, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        gate.set()
        assert (await first).status_code == 200
        assert counted(running_gateway, "sluice_requests_refused_total", reason="requests") == 1


async def test_bytes_in_flight_are_bounded(replica: FakeReplica) -> None:
    async with gateway_over(replica, max_in_flight_bytes=1000) as (running_gateway, client):
        answer = await client.post(PATH, content=b"x" * 2000, headers=PNG)
        refused(answer, 503, "overloaded")
        assert (await client.post(PATH, content=grey_png(0), headers=PNG)).status_code == 200
        assert counted(running_gateway, "sluice_requests_refused_total", reason="bytes") == 1


async def test_a_deadline_is_kept(replica: FakeReplica) -> None:
    async def hang(_request: Any) -> None:
        await asyncio.Event().wait()

    async with gateway_over(replica) as (running_gateway, client):
        replica.before_predict = hang
        headers = PNG | {"x-request-timeout": "0.2"}
        refused(await client.post(PATH, content=grey_png(0), headers=headers), 504, "deadline-exceeded")
        assert running_gateway.gateway.admission.in_flight == 0
        for wrong in ("soon", "0", "-1", "nan", "inf"):
            answer = await client.post(PATH, content=grey_png(0), headers=PNG | {"x-request-timeout": wrong})
            assert "X-Request-Timeout" in refused(answer, 400, "invalid-input")


async def test_a_client_that_leaves_gives_back_its_room(replica: FakeReplica) -> None:
    entered = asyncio.Event()

    async def hang(_request: Any) -> None:
        entered.set()
        await asyncio.Event().wait()

    async with gateway_over(replica) as (running_gateway, client):
        replica.before_predict = hang
        url = client.base_url
        assert url.port is not None
        data = grey_png(0)
        _, writer = await asyncio.open_connection(url.host, url.port)
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(data)}\r\n"
        )
        writer.write(head.encode() + b"X-Request-Timeout: 0.3\r\n\r\n" + data)
        await entered.wait()
        writer.close()
        await until(lambda: running_gateway.gateway.admission.in_flight == 0)


async def test_without_a_replica_the_answer_is_503_with_when_to_come_back() -> None:
    async with (
        running(FakeReplica()) as fake,
        gateway_over(fake, status_interval_s=3600.0) as (_, client),
    ):
        assert (await client.get("/readyz")).status_code == 200
    async with gateway_over(fake, wait=False) as (_, client):
        answer = await client.post(PATH, content=grey_png(0), headers=PNG)
        refused(answer, 503, "unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        assert (await client.get("/readyz")).json() == {"ready": False, "missing": ["digits"]}
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/healthz")).json() == {"status": "ok"}


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
        async with asyncio.timeout(20):
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


async def test_a_port_that_is_taken_is_a_clear_error(replica: FakeReplica) -> None:
    async with gateway_over(replica) as (running_gateway, client):
        taken_http, taken_grpc = client.base_url.port, int(running_gateway.grpc_address.split(":")[-1])
        for ports in ({"http_port": taken_http}, {"grpc_port": taken_grpc}):
            with pytest.raises(Exception, match=r"cannot listen on 127\.0\.0\.1") as caught:
                async with gateway_over(replica, **ports):
                    pass
            assert "Traceback" not in str(caught.value)


async def test_draining_asks_clients_to_leave_and_answers_what_is_in_flight(replica: FakeReplica) -> None:
    entered, gate, leave = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def wait(_request: Any) -> None:
        entered.set()
        await gate.wait()

    up: asyncio.Future[Running] = asyncio.get_running_loop().create_future()

    async def live() -> None:
        async with gateway_over(replica) as (running_gateway, _):
            up.set_result(running_gateway)
            await leave.wait()

    living = asyncio.create_task(live())
    running_gateway = await up
    replica.before_predict = wait
    async with httpx.AsyncClient(base_url=running_gateway.http_url, timeout=30) as client:
        in_flight = asyncio.create_task(client.post(PATH, content=grey_png(0), headers=PNG))
        await entered.wait()
        leave.set()
        await until(lambda: running_gateway.gateway.draining)
        gate.set()
        answer = await in_flight
        assert answer.status_code == 200
        assert answer.headers["connection"] == "close"
        await living
        with pytest.raises(httpx.TransportError):
            await client.get("/healthz")


def test_the_sample_that_the_readme_posts_is_in_the_package() -> None:
    from serving.commands import SAMPLE

    assert SAMPLE.read_bytes().startswith(b"\x89PNG")
    assert Path("serving/samples/seven.png").name == SAMPLE.name

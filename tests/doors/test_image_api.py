"""The image API: every way to send images, errors for each bad one, labels, streaming, deadlines, traces."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest

from serving import catalog, protos, tensors
from serving.errors import InvalidInput
from serving.main import Running
from serving.prediction import ModelRef, RequestContext
from serving.rest.uploads import json_uploads
from serving.routing import Split
from serving.settings import Settings
from tests.doors.replica import ScriptedReplica
from tests.support.fake_replica import TIME_LEFT_S, until
from tests.support.gateways import gateway_over
from tests.support.http import grey_png

PATH = "/v1/models/digits:classify"
PNG = {"content-type": "image/png"}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def labels_of(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [
        result["classes"][0]["label"] if "classes" in result else result["error"]["type"]
        for result in answer.json()["results"]
    ]


async def test_json_carries_many_images_and_an_error_for_each_bad_one(client: httpx.AsyncClient) -> None:
    good = b64(grey_png(200))
    url_safe = base64.urlsafe_b64encode(grey_png(30)).decode().rstrip("=")
    images = [
        {"b64": "%%%"},
        {"b64": good},
        good,
        {"b64": b64(b"no image")},
        {"b64": url_safe},
        {"b64": base64.encodebytes(grey_png(30)).decode()},
        7,
        {"b64": good, "more": 1},
        {"b64": ""},
    ]
    answer = await client.post(PATH, json={"images": images, "top_k": 1})
    assert labels_of(answer) == [
        "bad-image", "class-7", "class-7", "bad-image", "class-1", "class-1",
        "bad-image", "bad-image", "bad-image",
    ]  # fmt: skip
    assert [len(result.get("classes", [0])) for result in answer.json()["results"]] == [1] * 9


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("{", "the body is not JSON"),
        ("[]", "is not of the form"),
        ('{"images": {}}', "is not of the form"),
        ('{"images": []}', "has no image"),
        ('{"images": [], "topk": 1}', 'a member "topk"'),
        ('{"images": [], "top_k": "1"}', 'top_k is "1"'),
        ('{"images": [], "top_k": true}', "top_k is true"),
        ('{"images": [], "top_k": {"a": 1}}', "top_k is an object; it is a whole number"),
        ('{"images": [], "top_k": ' + "[" * 300 + "]" * 300 + "}", "top_k is an array; it is a whole number"),
        ('{"images": [{"b64": "!"}]}', "not base64"),
        ("", "the body is not JSON"),
    ],
)
async def test_json_of_another_form_is_refused(client: httpx.AsyncClient, body: str, says: str) -> None:
    answer = await client.post(PATH, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert says in answer.json()["detail"]


def test_images_in_json_are_counted_before_anything_is_made_of_them() -> None:
    """Else 32 MB of them, two bytes each, would take 6 GB."""

    def refuse(number: int) -> None:
        raise InvalidInput(f"too many: {number}")

    value = {"images": [7] * 100_000}
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInput, match="too many: 100000"):
            json_uploads(value, None, refuse)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


async def test_a_form_carries_files_and_answers_by_their_names(client: httpx.AsyncClient) -> None:
    files = [("images", ("a.png", grey_png(200))), ("images", ("b.png", b"")), ("x", ("c.png", grey_png(30)))]
    answer = await client.post(PATH, files=files)
    assert labels_of(answer) == ["class-7", "bad-image", "class-1"]
    assert [result["file"] for result in answer.json()["results"]] == ["a.png", "b.png", "c.png"]


def named(name: bytes, charset: str) -> dict[str, Any]:
    """A form whose one file has this name, and whose content type says that it is in this charset."""
    head = b'--b\r\nContent-Disposition: form-data; name="images"; filename="' + name + b'"\r\n\r\n'
    return {
        "content": head + grey_png(200) + b"\r\n--b--\r\n",
        "headers": {"content-type": f"multipart/form-data; boundary=b; charset={charset}"},
    }


@pytest.mark.parametrize(
    ("name", "charset"),
    [
        ("é.png".encode(), "UTF-8"),
        ("é.png".encode(), '"utf8"'),
        (b"\xe9.png", "iso-8859-1"),
        (b"\xe9.png", "Windows-1252"),
        (b"\xe9.png", "us-ascii"),  # it is not, and is read as older clients mean it
    ],
)
async def test_a_form_may_say_its_charset(client: httpx.AsyncClient, name: bytes, charset: str) -> None:
    answer = await client.post(PATH, **named(name, charset))
    assert answer.status_code == 200, answer.text
    assert answer.json()["results"][0]["file"] == "é.png"


@pytest.mark.parametrize(
    "charset", ["idna", "punycode", "undefined", "utf-7", "unicode_escape", "utf-16", "hex", "nonsense", ""]
)
async def test_a_form_in_another_charset_is_refused(client: httpx.AsyncClient, charset: str) -> None:
    answer = await client.post(PATH, **named(b"+2AA-\\ud800\xff", charset))
    assert answer.status_code == 400
    assert answer.json()["detail"] == (
        f'the content type multipart/form-data has the charset "{charset}"; supported are utf-8, utf8, '
        "us-ascii, iso-8859-1, windows-1252"
    )


async def test_ndjson_has_a_line_for_each_image_as_answers_come(replica: ScriptedReplica) -> None:
    gate = asyncio.Event()

    async def hold_the_rest(request: Any) -> None:
        if tensors.from_proto(request.inputs["images"]).max() > 90:
            await gate.wait()

    replica.before_predict = hold_the_rest
    images = [{"b64": b64(grey_png(25 * index))} for index in range(10)]
    images.insert(1, {"b64": "%"})
    async with gateway_over(replica, max_batch=4) as (_, client):
        request = client.build_request(
            "POST", PATH, json={"images": images, "top_k": 1}, headers={"accept": "application/x-ndjson"}
        )
        answer = await client.send(request, stream=True)
        assert answer.headers["content-type"] == "application/x-ndjson"
        lines = []
        async for line in answer.aiter_lines():
            lines.append(json.loads(line))
            if len(lines) == 5:  # the bad one and the first batch are here while the rest is held
                assert not gate.is_set()
                gate.set()
    assert sorted(line["index"] for line in lines) == list(range(11))
    by_index = {line["index"]: line for line in lines}
    assert by_index[1]["error"]["type"] == "bad-image"
    assert {line["version"] for line in lines if "version" in line} == {1}
    assert by_index[0]["classes"][0]["label"] == "class-0"
    assert by_index[10]["classes"][0]["label"] == "class-8"


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
@pytest.mark.parametrize(
    ("images", "says"),
    [
        ([b64(grey_png(9))] * 5, "the request has 5 images; at most 4 are allowed"),
        (["%", "!"], "the image is not base64"),
        ([], "the request has no image"),
    ],
    ids=("too-many", "none-whole", "none"),
)
async def test_however_it_is_to_be_answered_a_request_without_the_right_images_is_refused(
    replica: ScriptedReplica, images: list[str], says: str, accept: str
) -> None:
    async with gateway_over(replica, max_batch=2, max_images=4) as (_, client):
        answer = await client.post(PATH, json={"images": images}, headers={"accept": accept})
    assert answer.status_code == 400, answer.text
    assert says in answer.json()["detail"]
    assert replica.batches == []


@asynccontextmanager
async def begun_in_parts(replica: ScriptedReplica, gate: asyncio.Event) -> AsyncIterator[tuple[Running, Any]]:
    """A request of five images in parts of two: the first is here, the others wait for the gate."""

    async def hold_the_rest(request: Any) -> None:
        if tensors.from_proto(request.inputs["images"]).max() > 90:
            await gate.wait()

    replica.before_predict = hold_the_rest
    pictures = [grey_png(value) for value in (10, 60, 110, 160, 210)]
    context = RequestContext("id", "http", time.monotonic() + 60)
    async with gateway_over(replica, max_batch=2) as (up, _):
        parts: Any = up.gateway.classify_in_parts(ModelRef("digits"), pictures, 1, context)
        async with aclosing(parts):
            start, prediction = await anext(parts)
            assert (start, len(prediction.results)) == (0, 2)
            yield up, parts


async def test_a_request_is_in_progress_until_its_last_part_is_done_whoever_reads_it(
    replica: ScriptedReplica,
) -> None:
    gate = asyncio.Event()
    async with begun_in_parts(replica, gate) as (up, parts):
        assert up.gateway.admission.in_progress == 1
        gate.set()
        await until(lambda: up.gateway.admission.in_progress == 0)
        assert sorted([start async for start, _ in parts]) == [2, 4]


async def test_a_request_whose_caller_leaves_between_its_parts_is_no_longer_in_progress(
    replica: ScriptedReplica,
) -> None:
    async with begun_in_parts(replica, asyncio.Event()) as (up, parts):
        assert up.gateway.admission.in_progress == 1
        await parts.aclose()
        await until(lambda: up.gateway.admission.in_progress == 0)


async def test_an_ndjson_request_that_cannot_begin_is_a_problem(client: httpx.AsyncClient) -> None:
    answer = await client.post(
        "/v1/models/nope:classify", content=grey_png(1), headers={**PNG, "accept": "application/x-ndjson"}
    )
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


async def test_labels_stand_for_versions(replica: ScriptedReplica) -> None:
    replica.versions = {"digits": {1, 2}}
    replica.labels = {"canary": 1}

    async def version(client: httpx.AsyncClient, label: str) -> Any:
        answer = await client.post(
            f"/v1/models/digits/labels/{label}:classify", content=grey_png(9), headers=PNG
        )
        return answer.json().get("version", answer.json().get("detail"))

    async with gateway_over(replica) as (_, client):
        assert await version(client, "canary") == 1
        assert await version(client, "stable") == 2
        assert await version(client, "latest") == 2
        replica.labels = {"canary": 2, "stable": 1}  # what the replicas say comes first
        async with asyncio.timeout(60):
            while await version(client, "canary") != 2 or await version(client, "stable") != 1:
                await asyncio.sleep(0.05)


async def test_a_replica_is_not_asked_for_a_label_with_each_request(
    replica: ScriptedReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "LABEL_TTL_S", 3600.0)
    replica.versions, replica.labels = {"digits": {1, 2}}, {"canary": 1, "next": 2}

    async with gateway_over(replica) as (_, client):
        for label, version in (("canary", 1), ("next", 2)):
            path = f"/v1/models/digits/labels/{label}:classify"
            for _request in range(2):
                answer = await client.post(path, content=grey_png(9), headers=PNG)
                assert answer.json()["version"] == version
                replica.labels[label] = 3 - version  # which nobody asks for


@pytest.mark.parametrize("label", ["canary", "latest", "stable"])
async def test_a_label_follows_when_its_version_is_swapped_for_another(
    replica: ScriptedReplica, label: str
) -> None:
    replica.versions, replica.labels = {"digits": {1}}, {"canary": 1}
    path = f"/v1/models/digits/labels/{label}:classify"
    async with gateway_over(replica, status_interval_s=60) as (_, client):
        for version in (1, 2, 3):  # the gateway has not asked since
            replica.versions, replica.labels = {"digits": {version}}, {"canary": version}
            answer = await client.post(path, content=grey_png(9), headers=PNG)
            assert (answer.status_code, answer.json().get("version")) == (200, version), answer.text


async def test_stable_is_what_a_rollout_has_for_that_where_replicas_do_not_know_the_label(
    replica: ScriptedReplica,
) -> None:
    """As one does not that has just been started again."""
    replica.versions = {"digits": {1, 2}}
    async with gateway_over(replica) as (up, client):
        await until(lambda: set(up.catalog.versions("digits")) == {1, 2})
        up.gateway.steering.set_split("digits", Split(stable=1, candidate=2, weight=0.5), None)
        path = "/v1/models/digits/labels/stable:classify"
        answer = await client.post(path, content=grey_png(9), headers=PNG)
        assert answer.json()["version"] == 1


async def test_a_label_that_nobody_knows_is_not_found(client: httpx.AsyncClient, up: Running) -> None:
    text = (
        'the replicas of model "digits" know no version label "nope"; the gateway itself knows stable and '
        "latest"
    )
    answer = await client.post("/v1/models/digits/labels/nope:classify", content=grey_png(9), headers=PNG)
    assert (answer.status_code, answer.json()["detail"]) == (404, text)
    request = protos.ClassifyRequest(model="digits", label="nope", images=[grey_png(9)])
    async with grpc.aio.insecure_channel(up.grpc_address) as channel:
        classify: Any = channel.unary_unary(
            f"/{protos.IMAGE_CLASSIFICATION}/Classify",
            request_serializer=protos.ClassifyRequest.SerializeToString,
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await classify(request)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.NOT_FOUND, text)


async def test_ids_and_traces_are_taken_and_returned(client: httpx.AsyncClient) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    sent = {"x-request-id": "job-7/3", "traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    answer = await client.post(PATH, content=grey_png(9), headers={**PNG, **sent})
    assert answer.headers["x-request-id"] == "job-7/3"
    found = re.fullmatch(r"00-(\w{32})-(\w{16})-01", answer.headers["traceparent"])
    assert found
    assert found[1] == trace
    assert found[2] != "00f067aa0ba902b7"
    later = {"traceparent": f"01-{trace}-00f067aa0ba902b7-01-more"}
    assert trace in (await client.get("/healthz", headers=later)).headers["traceparent"]
    for bad in (
        "",
        "00-0-0-0",
        f"ff-{trace}-00f067aa0ba902b7-01",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{trace}-00f067aa0ba902b7-01-more",
    ):
        answer = await client.get("/healthz", headers={"traceparent": bad, "x-request-id": "a b"})
        assert re.fullmatch(r"00-(?!0{32})\w{32}-\w{16}-00", answer.headers["traceparent"])
        assert trace not in answer.headers["traceparent"]
        assert answer.headers["x-request-id"] != "a b"


async def test_a_deadline_is_kept_and_passed_on(
    replica: ScriptedReplica, gateway: tuple[Running, httpx.AsyncClient]
) -> None:
    _, client = gateway
    left_s: list[float | None] = []

    async def never(_request: Any) -> None:
        left_s.append(TIME_LEFT_S.get())
        await asyncio.Event().wait()

    async def at_once(_request: Any) -> None:
        left_s.append(TIME_LEFT_S.get())

    replica.before_predict = never
    answer = await client.post(PATH, content=grey_png(9), headers={**PNG, "x-request-timeout": "2"})
    assert answer.status_code == 504
    assert [each is not None and each <= 2.0 for each in left_s] == [True]
    assert answer.json()["type"] == "urn:sluice:problem:deadline-exceeded"
    replica.before_predict = at_once
    await client.post(PATH, content=grey_png(9), headers={**PNG, "x-request-timeout": "9000"})
    assert left_s[-1] is not None
    slack_s = 1.0  # gRPC rounds deadlines up on their way
    assert left_s[-1] <= Settings().request_timeout_s + slack_s, "a caller gets no more than the default"
    for bad in ("0", "-1", "soon", "nan", "inf"):
        answer = await client.post(PATH, content=grey_png(9), headers={**PNG, "x-request-timeout": bad})
        assert answer.status_code == 400
        assert "X-Request-Timeout" in answer.json()["detail"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-tar", "image/svg+xml"])
async def test_another_content_type_names_those_taken(client: httpx.AsyncClient, content_type: str) -> None:
    answer = await client.post(PATH, content=b"x", headers={"content-type": content_type})
    assert answer.status_code == 415
    assert "image/png" in answer.json()["detail"]
    assert "application/json" in answer.json()["detail"]

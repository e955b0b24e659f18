"""A request that fails is let go of at once: its body must not wait for the garbage collector."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from google.protobuf.message import Message

from serving import protos, tensors
from serving.backends.pool import Pool
from serving.backends.tfserving import TensorFlowServing
from serving.errors import Unavailable
from serving.routing import Split
from tests.support.fake_replica import FakeReplica, Refusal, running, until
from tests.support.garbage import left_behind, our_frames
from tests.support.gateways import gateway_over
from tests.support.pictures import encoded, gradient
from tests.support.replicas import replica

CLASSIFY = "/v1/models/digits:classify"
PREDICT = "/v1/models/digits:predict"
PNG = {"content-type": "image/png"}
JSON = {"content-type": "application/json"}
NDJSON = {"accept": "application/x-ndjson"}
PICTURE = encoded(gradient(8, 8, "L"), "PNG")
CUT_OFF = PICTURE[: len(PICTURE) // 2]
# Of the last one gRPC may still hold something as its answer is here.
CALLS = 5


def refusing(code: grpc.StatusCode) -> FakeReplica:
    async def refuse(_request: Any) -> None:
        raise Refusal(code)

    return FakeReplica(before_predict=refuse)


def hanging() -> FakeReplica:
    async def hang(_request: Any) -> None:
        await asyncio.Event().wait()

    return FakeReplica(before_predict=hang)


@pytest.mark.parametrize(
    ("replica", "path", "headers", "body", "status"),
    [
        pytest.param(FakeReplica(), CLASSIFY, PNG, CUT_OFF, 400, id="an image that is cut off"),
        pytest.param(FakeReplica(), CLASSIFY, PNG, b"nonsense", 400, id="no image"),
        pytest.param(FakeReplica(), PREDICT, JSON, b'{"instances": [', 400, id="no JSON"),
        pytest.param(refusing(grpc.StatusCode.INTERNAL), CLASSIFY, PNG, PICTURE, 500, id="a model's fault"),
        pytest.param(refusing(grpc.StatusCode.UNAVAILABLE), CLASSIFY, PNG, PICTURE, 503, id="no replica"),
        pytest.param(hanging(), CLASSIFY, {**PNG, "x-request-timeout": "0.05"}, PICTURE, 504, id="too late"),
    ],
)
async def test_over_http(
    replica: FakeReplica, path: str, headers: dict[str, str], body: bytes, status: int
) -> None:
    async with running(replica) as fake, gateway_over(fake) as (_, client):
        await client.post(path, content=body, headers=headers)
        tasks = len(asyncio.all_tasks())
        with left_behind() as found:
            answer = await client.post(path, content=body, headers=headers)
            await until(lambda: len(asyncio.all_tasks()) <= tasks)
        assert answer.status_code == status
        assert not our_frames(found)


async def test_over_http_by_one_who_leaves() -> None:
    asked = asyncio.Event()

    async def hang(_request: Any) -> None:
        asked.set()
        await asyncio.Event().wait()

    async with running(FakeReplica(before_predict=hang)) as fake, gateway_over(fake) as (_, client):
        tasks = len(asyncio.all_tasks())
        with left_behind() as found:
            request = asyncio.create_task(client.post(CLASSIFY, content=PICTURE, headers=PNG))
            await asked.wait()
            request.cancel()
            await asyncio.wait([request])
            await until(lambda: len(asyncio.all_tasks()) <= tasks)
        assert request.cancelled()
        assert not our_frames(found)


async def test_an_image_that_cannot_be_read_among_others() -> None:
    request = protos.ClassifyRequest(images=[PICTURE, CUT_OFF])
    async with running(FakeReplica()) as fake, gateway_over(fake) as (up, _):
        async with grpc.aio.insecure_channel(up.grpc_address) as channel:
            classify = channel.unary_unary(
                f"/{protos.IMAGE_CLASSIFICATION}/Classify",
                request_serializer=protos.ClassifyRequest.SerializeToString,
                response_deserializer=protos.ClassifyResponse.FromString,
            )
            await classify(request)
            with left_behind() as found:
                for _ in range(CALLS):
                    answer = await classify(request)
        assert [result.error.kind for result in answer.results] == ["", "bad-image"]
        assert not our_frames(found)


@pytest.mark.parametrize("memory_bytes", [None, 2**33], ids=["no setting for memory", "a limit of memory"])
@pytest.mark.parametrize(
    ("replica", "model"),
    [
        pytest.param(FakeReplica(), "nobody", id="no such model"),
        pytest.param(refusing(grpc.StatusCode.INVALID_ARGUMENT), "digits", id="a replica refuses it"),
    ],
)
async def test_over_grpc(replica: FakeReplica, model: str, memory_bytes: int | None) -> None:
    request = protos.PredictRequest(model_spec={"name": model})
    request.inputs["images"].CopyFrom(tensors.to_proto(np.zeros((4, 8, 8, 1), np.uint8)))
    async with running(replica) as fake, gateway_over(fake, max_memory_bytes=memory_bytes) as (up, _):
        async with grpc.aio.insecure_channel(up.grpc_address) as channel:
            predict: Any = channel.unary_unary(
                f"/{protos.PREDICTION_SERVICE}/Predict", request_serializer=type(request).SerializeToString
            )
            with left_behind() as found:
                for _ in range(CALLS):
                    with pytest.raises(grpc.aio.AioRpcError):
                        await predict(request)
        frames = our_frames(found)
        # gRPC ends a call by an error that it holds itself, and so these frames; they must hold nothing.
        assert {frame.f_code.co_name for frame in frames} <= {"handle", "abort"}
        held = [value for frame in frames for value in frame.f_locals.values()]
        assert not [value for value in held if isinstance(value, Message)]


async def test_images_that_fail_behind_others_in_a_stream_of_lines() -> None:
    """The first part is answered; the line that ends the stream says what the second met."""
    asked = 0

    async def refuse_later(_request: Any) -> None:
        nonlocal asked
        asked += 1
        if asked % 2 == 0:
            raise Refusal(grpc.StatusCode.INTERNAL)

    body = {"images": [base64.b64encode(PICTURE).decode()] * 2}
    async with (
        running(FakeReplica(before_predict=refuse_later)) as fake,
        gateway_over(fake, max_batch=1) as (_, client),
    ):
        tasks = len(asyncio.all_tasks())
        with left_behind() as found:
            answer = await client.post(CLASSIFY, json=body, headers=NDJSON)
            await until(lambda: len(asyncio.all_tasks()) <= tasks)
        first, last = (json.loads(line) for line in answer.text.splitlines())
        assert (first["index"], last["error"]["type"]) == (0, "internal")
        assert not our_frames(found)


async def test_a_stream_of_lines_that_is_left() -> None:
    asked = asyncio.Event()

    async def hang_later(_request: Any) -> None:
        if fake.batches[1:]:
            asked.set()
            await asyncio.Event().wait()

    body = {"images": [base64.b64encode(PICTURE).decode()] * CALLS}
    async with (
        running(FakeReplica(before_predict=hang_later)) as fake,
        gateway_over(fake, max_batch=1) as (_, client),
    ):
        tasks = len(asyncio.all_tasks())
        with left_behind() as found:
            async with client.stream("POST", CLASSIFY, json=body, headers=NDJSON) as answer:
                lines = answer.aiter_lines()
                line = await anext(lines)
                await asked.wait()
            await until(lambda: len(asyncio.all_tasks()) <= tasks)
        assert json.loads(line)["index"] == 0
        assert not our_frames(found)


def classify_stream(channel: grpc.aio.Channel) -> tuple[Any, Any]:
    """ClassifyStream, and a request with one image."""
    ask: Any = channel.stream_stream(
        f"/{protos.IMAGE_CLASSIFICATION}/ClassifyStream",
        request_serializer=protos.ClassifyRequest.SerializeToString,
        response_deserializer=protos.ClassifyResponse.FromString,
    )
    return ask, protos.ClassifyRequest(images=[PICTURE])


def infer_stream(channel: grpc.aio.Channel) -> tuple[Any, Any]:
    """ModelStreamInfer, and a request with one image."""
    ask: Any = channel.stream_stream(
        f"/{protos.OPEN_INFERENCE}/ModelStreamInfer",
        request_serializer=protos.ModelInferRequest.SerializeToString,
        response_deserializer=protos.ModelStreamInferResponse.FromString,
    )
    request = protos.ModelInferRequest(model_name="digits", raw_input_contents=[bytes(64)])
    request.inputs.add(name="images", datatype="UINT8", shape=[1, 8, 8, 1])
    return ask, request


Stream = Callable[[grpc.aio.Channel], tuple[Any, Any]]


@pytest.mark.parametrize("stream", [classify_stream, infer_stream])
async def test_what_fails_in_a_stream_over_grpc_that_goes_on(stream: Stream) -> None:
    async with (
        running(refusing(grpc.StatusCode.INTERNAL)) as fake,
        gateway_over(fake) as (up, _),
        grpc.aio.insecure_channel(up.grpc_address) as channel,
    ):
        ask, request = stream(channel)
        assert [each async for each in ask([request])]
        with left_behind() as found:
            answers = [each async for each in ask([request] * CALLS)]
        assert len(answers) == CALLS
        assert not our_frames(found)


@pytest.mark.parametrize("stream", [classify_stream, infer_stream])
async def test_a_stream_over_grpc_that_is_left(stream: Stream) -> None:
    async with (
        running(hanging()) as fake,
        gateway_over(fake) as (up, _),
        grpc.aio.insecure_channel(up.grpc_address) as channel,
    ):
        ask, request = stream(channel)
        tasks = len(asyncio.all_tasks())
        with left_behind() as found:
            call = ask()
            for _ in range(CALLS):
                await call.write(request)
            await until(lambda: bool(fake.batches) and up.gateway.admission.in_flight == CALLS)
            call.cancel()
            await until(lambda: len(asyncio.all_tasks()) <= tasks)
        assert not our_frames(found)


async def test_a_call_that_another_replica_answers() -> None:
    """The one that goes away first was asked; its error is of no more use."""
    failed = False

    async def ask(_api: TensorFlowServing, _timeout_s: float) -> str:
        nonlocal failed
        if not failed:
            failed = True
            raise Unavailable("gone")
        return "answer"

    pool = Pool([replica("127.0.0.1:1"), replica("127.0.0.1:2")], calls_per_replica=1)
    async with contextlib.aclosing(pool):
        with left_behind() as found:
            assert await pool.call("digits", 1, ask, deadline=time.monotonic() + 20) == "answer"
        assert failed
        assert not our_frames(found)


@pytest.mark.parametrize("patience_s", [None, 20.0], ids=["it is not known how long it takes", "it is known"])
async def test_a_call_beside_one_that_answers_in_the_end(patience_s: float | None) -> None:
    """The second call is cancelled, and its question, which may be a batch, must be freed with it."""
    beside = asyncio.Event()
    asked: list[TensorFlowServing] = []

    async def ask(api: TensorFlowServing, _timeout_s: float) -> str:
        asked.append(api)
        if len(asked) > 1:
            beside.set()
            await asyncio.Event().wait()
        await beside.wait()
        return "answer"

    pool = Pool([replica("127.0.0.1:1"), replica("127.0.0.1:2")], calls_per_replica=1)
    deadline = time.monotonic() + 20
    async with contextlib.aclosing(pool):
        with left_behind() as found:
            answer = await pool.call(
                "digits", 1, ask, deadline=deadline, patience_s=patience_s, hedge_after_s=0.001
            )
        assert (answer, len(asked)) == ("answer", 2)
        assert not our_frames(found)


async def test_a_copy_that_the_candidate_fails() -> None:
    async def refuse(request: Any) -> None:
        if request.model_spec.version.value == 2:
            raise Refusal(grpc.StatusCode.INTERNAL)

    replica = FakeReplica({"digits": {1, 2}}, before_predict=refuse)
    async with running(replica) as fake, gateway_over(fake) as (up, client):
        await until(lambda: len(up.catalog.versions("digits")) == 2)
        steering = up.gateway.steering
        steering.set_split("digits", Split(1, 2, shadow=1.0), None)
        with left_behind() as found:
            answer = await client.post(CLASSIFY, content=PICTURE, headers=PNG)
            await until(lambda: steering.counts("digits").get("candidate-failed/2") == 1)
        assert answer.json()["version"] == 1
        assert not our_frames(found)

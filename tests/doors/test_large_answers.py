"""Answers of many classes are written beside the event loop, by whichever door they leave."""

from __future__ import annotations

import base64
import gc
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc.aio
import httpx
import numpy as np
import pytest
from starlette.responses import Response
from starlette.types import Message

from serving import open_inference, protos, tensor_json_writing
from serving.prediction import ClassScore, ImageResult, Prediction
from serving.rest.boundary import MOST_AT_ONCE_BYTES, Boundary
from serving.rest.classify import _part_lines
from serving.rest.uploads import Upload
from tests.doors.replica import ScriptedReplica
from tests.support.fake_replica import _describe_tensor, running
from tests.support.gateways import gateway_over
from tests.support.http import PATH, grey_png
from tests.support.turns import somebody_else

CLASSES = 1_000
EXAMPLES = 256
UNLIMITED = ("grpc.max_receive_message_length", -1)
SCORES = np.random.default_rng(0).random([EXAMPLES, CLASSES], np.float32)


@pytest.fixture(autouse=True)
def no_garbage_collection() -> Iterator[None]:
    """A collection among all that a test session holds takes as long as what is measured here."""
    gc.disable()
    yield
    gc.enable()


def many_classes() -> Any:
    """A ClassificationResponse of every class for each Example."""
    response = protos.ClassificationResponse()
    for row in SCORES.tolist():
        classes = response.result.classifications.add().classes
        for index, score in enumerate(row):
            classes.add(label=f"class {index}", score=score)
    return response


@dataclass
class ReplicaOfManyClasses(ScriptedReplica):
    """Has a thousand classes without names, and an answer to Classify that it made before."""

    describes: bool = False
    classified: Any = None

    async def metadata(self, request: Any) -> Any:
        response = await super().metadata(request)
        found = protos.SignatureDefMap()
        response.metadata["signature_def"].Unpack(found)
        scores = found.signature_def["serving_default"].outputs["scores"]
        scores.Clear()
        _describe_tensor(scores, np.float32, (-1, CLASSES))
        response.metadata["signature_def"].Pack(found)
        return response

    async def predict(self, request: Any) -> Any:
        self._check(request.model_spec)
        count = request.inputs["images"].tensor_shape.dim[0].size
        return self._answer(request, scores=SCORES[:count])

    async def classify(self, request: Any) -> Any:
        return self.classified


def spent(work: Callable[..., Any], *args: Any) -> float:
    """The processor time that something takes, in seconds."""
    started = time.thread_time()
    work(*args)
    return time.thread_time() - started


async def answer_and_longest_s(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], accept: str = "application/json"
) -> tuple[bytes, float]:
    """The answer's body, and the longest turn of the loop between the request's and it, in seconds: the least
    of three, since the machine makes some turns longer. The client shares the loop, so what it does with the
    bodies is left out."""
    content = json.dumps(body).encode()
    headers = {"content-type": "application/json", "accept": accept}
    longest_s = []
    for _ in range(3):
        request = client.build_request("POST", path, content=content, headers=headers)
        async with somebody_else() as turns:
            answer = await client.send(request, stream=True)
            pieces = [piece async for piece in answer.aiter_raw()]
        await answer.aclose()
        longest_s.append(turns.longest_s)
    return b"".join(pieces), min(longest_s)


@pytest.mark.parametrize("accept", ["application/x-ndjson", "application/json"])
async def test_images_of_many_classes_leave_others_their_turn(accept: str) -> None:
    names = [f"class {index}" for index in range(CLASSES)]
    results = (ImageResult(tuple(map(ClassScore, names, range(CLASSES), row))) for row in SCORES.tolist())
    parts = [(0, Prediction("digits", 1, tuple(results)))]
    # Freeing it counts, too: in the gateway that is a turn of the loop, wherever the lines were written.
    alone_s = spent(lambda: _part_lines(parts.pop(), range(EXAMPLES), [Upload(b"")] * EXAMPLES))
    images = [base64.b64encode(grey_png(200)).decode()] * EXAMPLES
    async with (
        running(ReplicaOfManyClasses()) as replica,
        gateway_over(replica, max_batch=EXAMPLES) as (_, client),
    ):
        body = {"images": images, "top_k": CLASSES}
        answer, longest_s = await answer_and_longest_s(client, PATH, body, accept)
    found = [json.loads(line) for line in answer.splitlines()]
    if accept == "application/json":
        (found,) = (each["results"] for each in found)
    assert [len(each["classes"]) for each in found] == [CLASSES] * EXAMPLES
    assert longest_s < alone_s / 2


async def test_a_large_body_goes_out_in_pieces() -> None:
    """A connection encrypts or copies at once what it is given at once."""
    body = np.random.default_rng(1).bytes(5 * MOST_AT_ONCE_BYTES // 2)
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "state": {"body_here": True}}
    await Boundary(Response(body), lambda: False)(scope, receive, send)
    pieces = [message for message in sent if message["type"] == "http.response.body"]
    assert b"".join(piece["body"] for piece in pieces) == body
    assert max(len(piece["body"]) for piece in pieces) == MOST_AT_ONCE_BYTES
    assert [piece.get("more_body", False) for piece in pieces] == [True, True, False]


async def test_what_the_original_classifies_into_many_leaves_others_their_turn() -> None:
    response = many_classes()
    alone_s = spent(tensor_json_writing.render_classifications, response.result)
    async with (
        running(ReplicaOfManyClasses(classified=response)) as replica,
        gateway_over(replica) as (_, client),
    ):
        body = {"examples": [{"x": 1}] * EXAMPLES}
        answer, longest_s = await answer_and_longest_s(client, "/v1/models/digits:classify", body)
    assert [len(row) for row in json.loads(answer)["results"]] == [CLASSES] * EXAMPLES
    assert longest_s < alone_s / 2


async def test_classes_in_place_of_scores_leave_others_their_turn() -> None:
    tensor = open_inference.Tensor("scores", "FP32", SCORES)
    classes = open_inference.classified(tensor, CLASSES, ())
    alone_s = spent(open_inference.to_raw, classes)
    request = protos.ModelInferRequest(model_name="digits")
    request.inputs.add(name="images", datatype="UINT8", shape=(EXAMPLES, 8, 8, 1))
    request.raw_input_contents.append(bytes(EXAMPLES * 64))
    request.outputs.add(name="scores").parameters["classification"].int64_param = CLASSES
    async with (
        running(ReplicaOfManyClasses()) as replica,
        gateway_over(replica) as (up, _),
        grpc.aio.insecure_channel(up.grpc_address, options=[UNLIMITED]) as channel,
    ):
        infer: Any = channel.unary_unary(
            f"/{protos.OPEN_INFERENCE}/ModelInfer",
            request_serializer=protos.ModelInferRequest.SerializeToString,
            response_deserializer=protos.ModelInferResponse.FromString,
        )
        async with somebody_else() as turns:
            answer = await infer(request)
    assert list(answer.outputs[0].shape) == [EXAMPLES, CLASSES]
    assert turns.longest_s < alone_s / 2

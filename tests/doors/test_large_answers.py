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
import numpy as np
import pytest

from serving import open_inference, protos, tensor_json_writing
from serving.prediction import ClassScore, ImageResult, Prediction
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


async def test_lines_of_many_classes_leave_others_their_turn() -> None:
    classes = tuple(ClassScore(f"class {index}", index, 0.5) for index in range(CLASSES))
    prediction = Prediction("digits", 1, (ImageResult(classes),) * EXAMPLES)
    alone_s = spent(_part_lines, (0, prediction), range(EXAMPLES), [Upload(b"")] * EXAMPLES)
    images = [base64.b64encode(grey_png(200)).decode()] * EXAMPLES
    async with (
        running(ReplicaOfManyClasses()) as replica,
        gateway_over(replica, max_batch=EXAMPLES) as (_, client),
        somebody_else() as turns,
    ):
        body = {"images": images, "top_k": CLASSES}
        answer = await client.post(PATH, json=body, headers={"accept": "application/x-ndjson"})
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [len(line["classes"]) for line in lines] == [CLASSES] * EXAMPLES
    assert turns.longest_s < alone_s / 2


async def test_what_the_original_classifies_into_many_leaves_others_their_turn() -> None:
    response = many_classes()
    rows = [[(each.label, each.score) for each in row.classes] for row in response.result.classifications]
    alone_s = spent(tensor_json_writing.render_classifications, rows)
    async with (
        running(ReplicaOfManyClasses(classified=response)) as replica,
        gateway_over(replica) as (_, client),
        somebody_else() as turns,
    ):
        answer = await client.post("/v1/models/digits:classify", json={"examples": [{"x": 1}] * EXAMPLES})
    assert [len(row) for row in answer.json()["results"]] == [CLASSES] * EXAMPLES
    assert turns.longest_s < alone_s / 2


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

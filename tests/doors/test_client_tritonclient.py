"""`tritonclient`, over HTTP and gRPC, sync and asyncio; and the flow of Triton's `image_client.py`."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from PIL import Image
from tritonclient.utils import InferenceServerException

from tests.doors.conftest import Live

MODULES = (tritonclient.http, tritonclient.grpc)
AIO = ((tritonclient.http, tritonclient.http.aio), (tritonclient.grpc, tritonclient.grpc.aio))


def address_for(module: Any, live: Live) -> str:
    return live.http_address if module is tritonclient.http else live.grpc_address


@pytest.fixture(params=MODULES, ids=("http", "grpc"))
def triton(request: pytest.FixtureRequest, live: Live) -> Any:
    """The module and a client."""
    module = request.param
    client = module.InferenceServerClient(address_for(module, live))
    yield module, client
    client.close()


def as_dict(module: Any, answer: Any) -> Any:
    if module is tritonclient.http:
        return answer
    from google.protobuf import json_format

    return json_format.MessageToDict(answer, preserving_proto_field_name=True)


def test_the_server_and_the_model_are_ready(triton: Any, live: Live) -> None:
    module, client = triton
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", str(live.version))
    index = as_dict(module, client.get_model_repository_index())
    models = index if module is tritonclient.http else index["models"]
    assert [(each["name"], each["version"], each["state"]) for each in models] == [
        ("digits", str(live.version), "READY")
    ]
    assert as_dict(module, client.get_server_metadata())["name"] == "sluice"


def test_the_flow_of_image_client_finds_the_class(triton: Any, live: Live, photograph: bytes) -> None:
    module, client = triton
    metadata = as_dict(module, client.get_model_metadata("digits"))
    config = as_dict(module, client.get_model_config("digits"))
    config = config.get("config", config)
    assert config["max_batch_size"] >= 1
    (taken,), (given,) = config["input"], config["output"]
    assert taken["format"] == "FORMAT_NHWC"
    assert metadata["inputs"][0]["datatype"] == "UINT8"
    height, width, channels = map(int, taken["dims"])
    assert (height, width, channels) == (8, 8, 1)
    image = Image.open(BytesIO(photograph)).convert("L").resize((width, height), Image.Resampling.BILINEAR)
    batch = np.stack([np.asarray(image)[:, :, None]] * 3)
    sent = module.InferInput(taken["name"], list(batch.shape), metadata["inputs"][0]["datatype"])
    sent.set_data_from_numpy(batch)
    wanted = module.InferRequestedOutput(given["name"], class_count=2)
    result = client.infer("digits", [sent], outputs=[wanted], request_id="42")
    rows = result.as_numpy(given["name"])
    assert rows.shape == (3, 2)
    for row in rows:
        score, index, label = row[0].decode().split(":")
        assert (int(index), label) == (live.index, live.label)
        assert 0.9 < float(score) <= 1
    response = as_dict(module, result.get_response())
    assert response["model_version"] == str(live.version)
    assert response["id"] == "42"


def test_encoded_files_go_to_the_signature_that_takes_them(
    triton: Any, live: Live, photograph: bytes
) -> None:
    module, client = triton
    sent = module.InferInput("image_bytes", [1], "BYTES")
    sent.set_data_from_numpy(np.array([photograph], object))
    result = client.infer("digits", [sent])
    assert int(result.as_numpy("scores").argmax()) == live.index


def test_tensors_travel_as_json_as_well(live: Live) -> None:
    pixels = np.zeros((1, 8, 8, 1), np.uint8)
    client = tritonclient.http.InferenceServerClient(live.http_address)
    answers = []
    for binary in (False, True):
        sent = tritonclient.http.InferInput("images", [1, 8, 8, 1], "UINT8")
        sent.set_data_from_numpy(pixels, binary_data=binary)
        wanted = tritonclient.http.InferRequestedOutput("scores", binary_data=binary)
        answers.append(client.infer("digits", [sent], outputs=[wanted]).as_numpy("scores"))
    client.close()
    np.testing.assert_array_equal(*answers)


def test_compressed_requests_are_unpacked(live: Live) -> None:
    client = tritonclient.http.InferenceServerClient(live.http_address)
    sent = tritonclient.http.InferInput("images", [1, 8, 8, 1], "UINT8")
    sent.set_data_from_numpy(np.zeros((1, 8, 8, 1), np.uint8))
    shapes = [
        client.infer("digits", [sent], request_compression_algorithm=each).as_numpy("scores").shape
        for each in (None, "gzip", "deflate")
    ]
    client.close()
    assert shapes == [(1, 10)] * 3


def test_what_is_wrong_is_said(triton: Any) -> None:
    module, client = triton
    sent = module.InferInput("pictures", [1, 8, 8, 1], "UINT8")
    sent.set_data_from_numpy(np.zeros((1, 8, 8, 1), np.uint8))
    with pytest.raises(InferenceServerException, match=r"the inputs are pictures; the model takes: .*images"):
        client.infer("digits", [sent])
    with pytest.raises(InferenceServerException, match="there are: digits"):
        client.get_model_metadata("digit")
    with pytest.raises(InferenceServerException, match="has no version 99"):
        client.get_model_metadata("digits", "99")


@pytest.mark.parametrize(("module", "aio"), AIO, ids=("http", "grpc"))
async def test_the_asyncio_client_gets_the_same(module: Any, aio: Any, live: Live, photograph: bytes) -> None:
    async with aio.InferenceServerClient(address_for(module, live)) as client:
        sent = module.InferInput("image_bytes", [1], "BYTES")
        sent.set_data_from_numpy(np.array([photograph], object))
        result = await client.infer("digits", [sent])
    assert int(result.as_numpy("scores").argmax()) == live.index


def test_a_stream_answers_each_request_in_order(live: Live) -> None:
    import queue

    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client = tritonclient.grpc.InferenceServerClient(live.grpc_address)
    client.start_stream(lambda result, error: answers.put((result, error)))
    for index in range(5):
        name = "images" if index != 2 else "nonsense"
        sent = tritonclient.grpc.InferInput(name, [1, 8, 8, 1], "UINT8")
        sent.set_data_from_numpy(np.zeros((1, 8, 8, 1), np.uint8))
        client.async_stream_infer("digits", [sent], request_id=str(index))
    got = [answers.get(timeout=30) for _ in range(5)]
    client.stop_stream()
    client.close()
    assert [result.get_response().id if error is None else "error" for result, error in got] == [
        "0", "1", "error", "3", "4",
    ]  # fmt: skip
    assert "nonsense" in str(got[2][1])

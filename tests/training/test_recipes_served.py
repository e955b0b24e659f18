"""Every recipe through the model server: a process, asked by tensorflow-serving-api's own client."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tests.support.ports import free_port
from tests.training.conftest import Published
from tests.training.recipes import OPTIONS
from training import recipes
from training.config import Options

pytestmark = pytest.mark.timeout(900)  # whoever comes first trains the models that are shared

DEADLINE_S = 120.0
PROGRAM = shlex.split(os.environ.get("SLUICE_MODEL_SERVER", "")) or [
    sys.executable,
    "-m",
    "serving.modelserver",
]


@dataclass(frozen=True)
class Server:
    """A model server's client."""

    channel: grpc.Channel

    def is_ready(self, model: str) -> bool:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = model
        stub = model_service_pb2_grpc.ModelServiceStub(self.channel)
        try:
            answer = stub.GetModelStatus(request, timeout=10)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND):
                return False
            raise
        states = {status.version: status for status in answer.model_version_status}
        assert all(status.state <= 30 for status in states.values()), answer  # not unloading, not ended
        return any(status.state == 30 for status in states.values())

    def predict(
        self, model: str, inputs: dict[str, Any], signature: str = "serving_default"
    ) -> dict[str, Any]:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = model
        request.model_spec.signature_name = signature
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        stub = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        answer = stub.Predict(request, timeout=60)
        assert answer.model_spec.version.value == 1
        return {name: tf.make_ndarray(value) for name, value in answer.outputs.items()}


@pytest.fixture(scope="module")
def server(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the models of all the recipes."""
    folder = tmp_path_factory.mktemp("server")
    entries = [
        f'config {{ name: "{name}" base_path: "{published(name).parent}" model_platform: "tensorflow" }}'
        for name in OPTIONS
    ]
    (folder / "models.config").write_text(f"model_config_list {{ {' '.join(entries)} }}")
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*PROGRAM, f"--port={port}", f"--model_config_file={folder / 'models.config'}"],
            cwd=Path(__file__).parents[2],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            client = Server(channel)
            deadline = time.monotonic() + DEADLINE_S
            for name in OPTIONS:
                while not client.is_ready(name):
                    assert process.poll() is None, (folder / "log").read_text()[-3000:]
                    assert time.monotonic() < deadline, f"{name} is not ready in {DEADLINE_S} s"
                    time.sleep(0.1)
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def test_served_outputs_are_those_of_keras(server: Server, published: Published) -> None:
    for name in OPTIONS:
        plan = recipes.plan(name.removesuffix("-images"), Options(data=OPTIONS[name].get("data")))
        model = keras.models.load_model(published(name) / "assets.extra" / "model.keras")
        inputs = {key: array[:20] for key, array in plan.problem.test.inputs.items()}
        expected = plan.problem.interface.call(model, inputs)
        answers = server.predict(name, inputs)
        assert set(answers) == set(expected), name
        for key, output in answers.items():
            np.testing.assert_allclose(output, expected[key], atol=1e-5, err_msg=f"{name} {key}")


def test_every_model_describes_and_tests_itself(server: Server, published: Published) -> None:
    index = np.arange(3, dtype=np.int32)
    for name in OPTIONS:
        described = server.predict(name, {"index": index}, "describe")
        assert f'"model":"{published(name).parent.name}"'.encode() in described["card"][0]
        tested = server.predict(name, {"index": index}, "self_test")
        assert np.abs(tested["expected"] - tested["actual"]).max() <= 1e-4, name


def test_simple_dense_answers_nineteen(server: Server) -> None:
    answer = server.predict("simple-dense", {"x": np.array([[10.0]], np.float32)})["y"]
    assert answer.shape == (1, 1)
    assert answer[0, 0] == pytest.approx(19.0, abs=0.5)


def test_an_encoded_file_is_classified(server: Server) -> None:
    plan = recipes.plan("resnet", Options())
    images, classes = plan.problem.test.inputs["images"][:50], plan.problem.test.targets["scores"][:50]
    files = np.array([tf.io.encode_png(image).numpy() for image in images], dtype=object)
    scores = server.predict("resnet", {"image_bytes": files}, "serving_bytes")["scores"]
    assert float((scores.argmax(axis=1) == classes).mean()) >= 0.94

"""A model server as a process: ours, or the program that SLUICE_MODEL_SERVER names.

Only `tensorflow_model_server`'s flags are used, and only what it does is waited for.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib import error as urllib_error
from urllib import request as urllib_request

import grpc

from serving import protos
from tests.support.ports import free_port

DEADLINE_S = 60.0
FLOAT_TYPES = ["float32", "float64", "float16", "bfloat16", "complex64", "complex128"]
INT_TYPES = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
DTYPES = [*FLOAT_TYPES, *INT_TYPES, "bool", "string"]  # of the `kinds` model's identity signatures
T = TypeVar("T")


def program() -> list[str]:
    """The command that runs a model server."""
    return shlex.split(os.environ.get("SLUICE_MODEL_SERVER", "")) or [
        sys.executable,
        "-m",
        "serving.modelserver",
    ]


IS_OURS = not os.environ.get("SLUICE_MODEL_SERVER")
ENDED = {0} if IS_OURS else {0, -signal.SIGTERM}  # exit status after SIGTERM; the original does not catch it


def until(check: Callable[[], T], what: str, deadline_s: float = DEADLINE_S) -> T:
    """What `check` returns once it is true; fails after the deadline."""
    end = time.monotonic() + deadline_s
    while True:
        found = check()
        if found:
            return found
        assert time.monotonic() < end, f"not in {deadline_s} s: {what}"
        time.sleep(0.05)


class ServerProcess:
    """One server process with its clients."""

    def __init__(self, flags: Sequence[str], log: Path, *, has_rest: bool = False) -> None:
        self.port, self.rest_port = free_port(), free_port()
        self.log, self.has_rest = log, has_rest
        rest = [f"--rest_api_port={self.rest_port}"] if has_rest else []
        command = [*program(), f"--port={self.port}", *rest, *flags]
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "1", "CUDA_VISIBLE_DEVICES": ""}
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        self.channel = grpc.insecure_channel(
            f"localhost:{self.port}",
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 500),
            ],
        )

    def log_text(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace")

    def wait_ready(self) -> ServerProcess:
        """Wait until the gRPC port answers (the original opens it when the first models are there)."""

        def answers() -> bool:
            assert self.process.poll() is None, self.log_text()[-3000:]
            ready = grpc.channel_ready_future(self.channel)
            try:
                ready.result(timeout=1)
            except grpc.FutureTimeoutError:
                return False
            finally:
                ready.cancel()  # else it asks on, of a channel that is closed in the end
            return not self.has_rest or self._listens(self.rest_port)

        until(answers, "the server takes calls")
        return self

    @staticmethod
    def _listens(port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def wait_exit(self, deadline_s: float = DEADLINE_S) -> int:
        """Its exit status, once it has ended by itself."""
        return self.process.wait(deadline_s)

    def stop(self) -> int:
        """End it as an operator would; the exit status."""
        self.channel.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(90)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def call(self, service: str, method: str, request: Any, timeout_s: float = 30.0) -> Any:
        """Call any method; raises grpc.RpcError."""
        return self.method(service, method)(request, timeout=timeout_s)

    def method(self, service: str, method: str) -> Any:
        """What calls a method."""
        _, response_class = protos.methods(service)[method]
        return self.channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response_class.FromString,
        )

    def predict(self, request: Any, timeout_s: float = 30.0) -> Any:
        """PredictionService.Predict."""
        return self.call(protos.PREDICTION_SERVICE, "Predict", request, timeout_s)

    def states(self, model: str) -> dict[int, str]:
        """Version -> name of its state; empty if the server knows no version of the model."""
        request = protos.GetModelStatusRequest(model_spec={"name": model})
        try:
            response = self.call(protos.MODEL_SERVICE, "GetModelStatus", request)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return {}
            raise
        return {
            entry.version: protos.MODEL_VERSION_STATES[entry.state] for entry in response.model_version_status
        }

    def wait_states(self, model: str, wanted: dict[int, str]) -> None:
        """Wait until each of these versions is in its state."""

        def reached() -> bool:
            states = self.states(model)
            return all(states.get(version) == state for version, state in wanted.items())

        until(reached, f"{model}: {wanted}; was {self.states(model)}")

    def reload(self, config: Any, timeout_s: float = 60.0) -> Any:
        """ModelService.HandleReloadConfigRequest."""
        request = protos.ReloadConfigRequest(config=config)
        return self.call(protos.MODEL_SERVICE, "HandleReloadConfigRequest", request, timeout_s)

    def http(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (names in lower case) and body of a call; a body that is no bytes goes as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib_request.Request(
            f"http://localhost:{self.rest_port}{path}", data=data, method=method, headers=headers or {}
        )
        try:
            with urllib_request.urlopen(request, timeout=60) as response:
                return response.status, _lowered(response.headers), response.read()
        except urllib_error.HTTPError as error:
            return error.code, _lowered(error.headers), error.read()

    def rest(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and parsed JSON of a REST call."""
        status, _, answer = self.http(method, path, body)
        return status, json.loads(answer)


def _lowered(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}

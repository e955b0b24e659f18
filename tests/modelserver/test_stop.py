"""The end of the gRPC server: calls are finished; clients that do not hang up are not waited for."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

from serving import protos
from serving.modelserver.rpc import Listening, RpcServer
from tests.modelserver.process import DEADLINE_S, until

CLIENT = """
import grpc, sys
from serving import protos
channel = grpc.insecure_channel(sys.argv[1])
call = channel.unary_unary(f"/{protos.PREDICTION_SERVICE}/Predict")
print(call(protos.PredictRequest().SerializeToString(), wait_for_ready=True).decode(), flush=True)
"""
ANSWER = protos.PredictResponse(model_spec={"name": "done"})
HOURS_S = 36000.0


class OneCall:
    """Services whose Predict says that it has begun, and waits until it may end."""

    def __init__(self) -> None:
        self.has_begun, self.may_end = threading.Event(), threading.Event()

    def predict(self, request: Any) -> Any:
        self.has_begun.set()
        assert self.may_end.wait(DEADLINE_S)
        return ANSWER

    def measured(self, name: str, api: str, entrypoint: str, work: Callable[[], Any]) -> Any:
        return work()

    def __getattr__(self, name: str) -> Any:
        return self.predict


@pytest.fixture
def services() -> OneCall:
    return OneCall()


@pytest.fixture
def server(services: OneCall) -> RpcServer:
    return RpcServer(services, 2, [])  # type: ignore[arg-type]  # all that is called of them


@pytest.fixture
def client(server: RpcServer, services: OneCall) -> Iterator[subprocess.Popen[str]]:
    """A process whose call is under way."""
    port = server.listen(Listening(0, ""), None)
    server.start()
    command = [sys.executable, "-c", CLIENT, f"localhost:{port}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert services.has_begun.wait(DEADLINE_S)
    yield process
    process.kill()
    process.communicate()


def test_a_call_under_way_is_finished(
    server: RpcServer, services: OneCall, client: subprocess.Popen[str]
) -> None:
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(server.stop, HOURS_S)
        assert not stopping.done()
        services.may_end.set()
        assert stopping.result(DEADLINE_S)
    output, _ = client.communicate(timeout=DEADLINE_S)
    assert output == ANSWER.SerializeToString().decode() + "\n"
    assert client.returncode == 0


def test_a_suspended_client_is_not_waited_for(
    server: RpcServer, services: OneCall, client: subprocess.Popen[str]
) -> None:
    client.send_signal(signal.SIGSTOP)
    suspended = psutil.Process(client.pid)
    until(lambda: suspended.status() == psutil.STATUS_STOPPED, "it is suspended")
    services.may_end.set()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(server.stop, HOURS_S).result(DEADLINE_S)
    assert suspended.status() == psutil.STATUS_STOPPED


def test_a_call_that_does_not_end_is_given_up(
    server: RpcServer, services: OneCall, client: subprocess.Popen[str]
) -> None:
    assert not server.stop(0.05)
    services.may_end.set()

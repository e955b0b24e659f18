"""The gRPC server without a model behind it: its bounds, what fails in it, whom it lets in."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Event, Semaphore
from typing import Any

import grpc
import pytest

from serving import protos
from serving.modelserver.rpc import Listening, RpcServer, credentials_from
from tests.modelserver.process import DEADLINE_S, until
from tests.modelserver.test_conformance_predict import Code
from tests.modelserver.test_conformance_server import certificates

ANSWER = protos.PredictResponse(model_spec={"name": "done"})


class Scripted:
    """Services of which each does what the test says."""

    def __init__(self, work: Callable[..., Any]) -> None:
        self._work = work

    def measured(self, name: str, api: str, entrypoint: str, work: Callable[[], Any]) -> Any:
        return work()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return self._work


@contextmanager
def serving(work: Callable[..., Any], most: int = 2, credentials: Any = None) -> Iterator[int]:
    """The port of a server whose calls do `work`."""
    server = RpcServer(Scripted(work), most, [])  # type: ignore[arg-type]  # all that is called of them
    port = server.listen(Listening(0, ""), credentials)
    assert port is not None
    server.start()
    try:
        yield port
    finally:
        assert server.stop(DEADLINE_S)


def predict(channel: Any, serialized: bytes = b"") -> Any:
    call = channel.unary_unary(
        f"/{protos.PREDICTION_SERVICE}/Predict", response_deserializer=protos.PredictResponse.FromString
    )
    return call(serialized, timeout=DEADLINE_S)


def test_no_more_calls_are_worked_on_than_there_are_threads_for() -> None:
    begun, may_end, numbers = Semaphore(0), Event(), count()

    def work(_request: Any) -> Any:
        if next(numbers) < 2:
            begun.release()
            assert may_end.wait(DEADLINE_S)
        return ANSWER

    with (
        serving(work, most=2) as port,
        grpc.insecure_channel(f"localhost:{port}") as channel,
        ThreadPoolExecutor(2) as pool,
    ):
        try:
            held = [pool.submit(predict, channel) for _ in range(2)]
            for _ in held:
                assert begun.acquire(timeout=DEADLINE_S)
            with pytest.raises(grpc.RpcError) as refused:
                predict(channel)
        finally:
            may_end.set()
        assert [each.result(DEADLINE_S) for each in held] == [ANSWER] * 2
        assert predict(channel) == ANSWER, "there is room again"
    assert refused.value.code() is Code.RESOURCE_EXHAUSTED
    assert refused.value.details() == "Server Threadpool Exhausted"


def test_an_error_that_nobody_foresaw_is_logged_and_told_as_internal(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def work(_request: Any) -> Any:
        raise ZeroDivisionError("no luck")

    with (
        serving(work) as port,
        grpc.insecure_channel(f"localhost:{port}") as channel,
        pytest.raises(grpc.RpcError) as failed,
    ):
        predict(channel)
    assert (failed.value.code(), failed.value.details()) == (Code.INTERNAL, "ZeroDivisionError: no luck")
    assert [record.exc_info is not None for record in caplog.records if record.levelname == "ERROR"] == [True]


def test_what_is_no_message_is_the_clients_fault() -> None:
    """The original says INTERNAL."""
    with (
        serving(lambda _request: ANSWER) as port,
        grpc.insecure_channel(f"localhost:{port}") as channel,
        pytest.raises(grpc.RpcError) as refused,
    ):
        predict(channel, b"\xff")
    assert refused.value.code() is Code.INVALID_ARGUMENT
    assert refused.value.details() == "The request is not a tensorflow.serving.PredictRequest"


def test_a_reload_hears_that_its_caller_waits_no_more() -> None:
    has_heard = Event()

    def work(_request: Any, is_cancelled: Callable[[], bool]) -> Any:
        assert not is_cancelled()
        until(is_cancelled, "the caller is gone", 20.0)
        has_heard.set()
        return protos.ReloadConfigResponse()

    with serving(work) as port, grpc.insecure_channel(f"localhost:{port}") as channel:
        reload: Any = channel.unary_unary(f"/{protos.MODEL_SERVICE}/HandleReloadConfigRequest")
        with pytest.raises(grpc.RpcError) as given_up:
            reload(b"", timeout=0.5)
        assert given_up.value.code() is Code.DEADLINE_EXCEEDED
        assert has_heard.wait(DEADLINE_S)


@pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl, which makes the certificates, is not there"
)
def test_clients_without_a_certificate_are_let_in_unless_theirs_are_to_be_verified(tmp_path: Path) -> None:
    pem = certificates(tmp_path)
    config = protos.SSLConfig(
        server_key=pem["server.key"].decode(), server_cert=pem["server.crt"].decode(),
        custom_ca=pem["ca.crt"].decode(),
    )  # fmt: skip
    trusting = grpc.ssl_channel_credentials(pem["ca.crt"])
    with (
        serving(lambda _request: ANSWER, credentials=credentials_from(config)) as port,
        grpc.secure_channel(f"localhost:{port}", trusting) as channel,
    ):
        assert predict(channel) == ANSWER

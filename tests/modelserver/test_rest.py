"""The REST API without a transport: what no client can bring about at will."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from serving import protos
from serving.modelserver import rest
from serving.modelserver.core import ServerCore
from serving.modelserver.lifecycle import State
from serving.modelserver.manager import ModelManager, RetryPolicy
from serving.modelserver.metrics import Metrics
from serving.modelserver.predict import PREDICT_METHOD, PredictOptions
from serving.modelserver.rest import RestApi
from serving.modelserver.services import Services
from serving.modelserver.signature import Signature
from serving.modelserver.status import Code, StatusError
from tests.modelserver.process import until


class Echo:
    """A servable that answers with its input, which is called `alias`."""

    def __init__(self, alias: str, dtype: str = "DT_FLOAT") -> None:
        tensor = {"name": f"{alias}:0", "dtype": dtype, "tensor_shape": {"unknown_rank": True}}
        message = protos.SignatureDef(
            inputs={alias: tensor}, outputs={"y": tensor}, method_name=PREDICT_METHOD
        )
        self._signatures = {"serving_default": Signature.read(message)}

    @property
    def signatures(self) -> Mapping[str, Signature]:
        return self._signatures

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        return [feeds[name] for name in fetches]

    def close(self) -> None:
        pass


class EchoUntilNext(Echo):
    """Version 1, which version 2 replaces as soon as its signatures are looked at."""

    def __init__(self, manager: ModelManager) -> None:
        super().__init__("old")
        self._manager = manager

    @property
    def signatures(self) -> Mapping[str, Signature]:
        self._manager.want("m", {2: Path("/m/2")})
        until(lambda: state_of(self._manager, 2) is State.AVAILABLE, "version 2 serves")
        until(lambda: state_of(self._manager, 1) is not State.AVAILABLE, "version 1 is on its way out")
        return super().signatures


def state_of(manager: ModelManager, version: int) -> State | None:
    at = manager.states("m").get(version)
    return at.state if at is not None else None


def test_the_version_that_a_body_was_read_for_answers_it_whatever_comes_in_between() -> None:
    manager = ModelManager(
        lambda _, version, __: EchoUntilNext(manager) if version == 1 else Echo("new"), RetryPolicy(0, 0.0), 1
    )
    manager.want("m", {1: Path("/m/1")})
    until(lambda: state_of(manager, 1) is State.AVAILABLE, "version 1 serves")
    api = RestApi(Services(ServerCore(manager), PredictOptions(), Metrics()))
    body = b'{"instances": [{"old": 1.5}]}'
    assert json.loads(api.answer("POST", "/v1/models/m:predict", body)[1]) == {"predictions": [1.5]}
    until(lambda: state_of(manager, 1) is State.END, "version 1 is let go")
    status, answer = api.answer("POST", "/v1/models/m:predict", body)
    assert status == 400
    assert "does not have named input: old" in json.loads(answer)["error"]
    assert manager.close(10)


@pytest.mark.parametrize("path", ["/v1/models/%FF:predict", "/v1/models/m/labels/%C3:predict"])
def test_a_name_that_is_no_text_is_refused(path: str) -> None:
    """The original looks for a model of that name."""
    manager = ModelManager(lambda *_: Echo("x"), RetryPolicy(0, 0.0), 1)
    api = RestApi(Services(ServerCore(manager), PredictOptions(), Metrics()))
    status, answer = api.answer("POST", path, b'{"instances": [1.0]}')
    assert status == 400
    assert json.loads(answer)["error"].startswith("Failed to decode model ")
    assert manager.close(10)


class Slow(Echo):
    """A servable whose runs take 20 ms, and which keeps the types of what it was fed."""

    def __init__(self, dtype: str) -> None:
        super().__init__("x", dtype)
        self.fed: list[str] = []

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        time.sleep(0.02)
        self.fed += [str(array.dtype) for array in feeds.values()]
        return super().run(feeds, fetches)


def test_times_are_counted_in_microseconds_and_a_body_is_read_for_the_types_of_the_signature() -> None:
    servable = Slow("DT_BFLOAT16")
    manager = ModelManager(lambda *_: servable, RetryPolicy(0, 0.0), 1)
    manager.want("m", {1: Path("/m/1")})
    until(lambda: state_of(manager, 1) is State.AVAILABLE, "it serves")
    metrics = Metrics()
    api = RestApi(Services(ServerCore(manager), PredictOptions(), metrics))
    status, answer = api.answer("POST", "/v1/models/m:predict", b'{"instances": [1.5]}')
    assert (status, json.loads(answer)) == (200, {"predictions": [1.5]})
    assert servable.fed == ["bfloat16"]
    for histogram in (metrics.request_latency, metrics.runtime_latency):
        (total,) = [line.rpartition(" ")[2] for line in histogram.lines() if "_sum{" in line]
        assert 20_000 <= float(total) < 60e6
    assert manager.close(10)


class Failing(Echo):
    """A servable whose runs fail."""

    def __init__(self, error: Exception) -> None:
        super().__init__("x")
        self._error = error

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        raise self._error


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (Code.CANCELLED, 499),
        (Code.UNKNOWN, 500),
        (Code.INVALID_ARGUMENT, 400),
        (Code.DEADLINE_EXCEEDED, 504),
        (Code.NOT_FOUND, 404),
        (Code.ALREADY_EXISTS, 409),
        (Code.PERMISSION_DENIED, 403),
        (Code.RESOURCE_EXHAUSTED, 429),
        (Code.FAILED_PRECONDITION, 400),
        (Code.ABORTED, 409),
        (Code.OUT_OF_RANGE, 400),
        (Code.UNIMPLEMENTED, 501),
        (Code.INTERNAL, 500),
        (Code.UNAVAILABLE, 503),
        (Code.DATA_LOSS, 500),
        (Code.UNAUTHENTICATED, 401),
    ],
)
def test_each_code_has_the_originals_status(code: Code, status: int) -> None:
    manager = ModelManager(lambda *_: Failing(StatusError(code, "no\nluck")), RetryPolicy(0, 0.0), 1)
    manager.want("m", {1: Path("/m/1")})
    until(lambda: state_of(manager, 1) is State.AVAILABLE, "it serves")
    metrics = Metrics()
    api = RestApi(Services(ServerCore(manager), PredictOptions(), metrics))
    answered, body = api.answer("POST", "/v1/models/m:predict", b'{"instances": [1.0]}')
    assert answered == status
    assert json.loads(body) == {"error": "no\nluck"}
    counted = metrics.request_count.lines()[1:]
    assert counted == [f':tensorflow:serving:request_count{{model_name="m",status="{code.name}"}} 1']
    assert metrics.request_latency.lines() == []  # of calls that succeed only
    assert manager.close(10)


def test_an_error_that_nobody_foresaw_is_told_and_counted_as_internal(
    caplog: pytest.LogCaptureFixture,
) -> None:
    manager = ModelManager(lambda *_: Failing(ZeroDivisionError("no luck")), RetryPolicy(0, 0.0), 1)
    manager.want("m", {1: Path("/m/1")})
    until(lambda: state_of(manager, 1) is State.AVAILABLE, "it serves")
    metrics = Metrics()
    api = RestApi(Services(ServerCore(manager), PredictOptions(), metrics))
    status, body = api.answer("POST", "/v1/models/m:predict", b'{"instances": [1.0]}')
    assert (status, json.loads(body)) == (500, {"error": "ZeroDivisionError: no luck"})
    assert metrics.request_count.lines()[1:] == [
        ':tensorflow:serving:request_count{model_name="m",status="INTERNAL"} 1'
    ]
    assert [record.exc_info is not None for record in caplog.records if record.levelname == "ERROR"] == [True]
    assert manager.close(10)


def test_what_a_gzipped_body_may_grow_to_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "MAX_INFLATED_BYTES", 1000)
    assert rest.inflated(gzip.compress(bytes(600)) + gzip.compress(bytes(400))) == bytes(1000)
    with pytest.raises(StatusError, match="more than 1000 bytes"):
        rest.inflated(gzip.compress(bytes(1001)))

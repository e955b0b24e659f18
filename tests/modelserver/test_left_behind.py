"""A request that the model server refuses is let go of at once, without the garbage collector."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from serving import protos, tensors
from serving.modelserver.core import ServerCore
from serving.modelserver.lifecycle import State
from serving.modelserver.manager import ModelManager, RetryPolicy
from serving.modelserver.metrics import Metrics
from serving.modelserver.predict import PredictOptions
from serving.modelserver.rest import RestApi
from serving.modelserver.rpc import Listening, RpcServer
from serving.modelserver.services import Services
from tests.modelserver.process import until
from tests.modelserver.test_rest import Echo, state_of
from tests.support.garbage import left_behind, our_frames


@pytest.fixture
def services() -> Iterator[Services]:
    """Of one model, `m`, that takes `x` and answers it."""
    manager = ModelManager(lambda *_: Echo("x"), RetryPolicy(0, 0.0), 1)
    manager.want("m", {1: Path("/m/1")})
    until(lambda: state_of(manager, 1) is State.AVAILABLE, "it serves")
    yield Services(ServerCore(manager), PredictOptions(), Metrics())
    assert manager.close(10)


@pytest.mark.parametrize("body", [b"{", b'{"instances": [{"y": 1.0}]}'], ids=["no JSON", "no such input"])
def test_over_rest(services: Services, body: bytes) -> None:
    api = RestApi(services)
    with left_behind() as found:
        status, _ = api.answer("POST", "/v1/models/m:predict", body)
    assert status == 400
    assert not our_frames(found)


def test_over_grpc(services: Services) -> None:
    server = RpcServer(services, 2, [])
    port = server.listen(Listening(0, ""), None)
    server.start()
    request = protos.PredictRequest(model_spec={"name": "m"})
    request.inputs["y"].CopyFrom(tensors.to_proto(np.zeros(1, np.float32)))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        predict: Any = channel.unary_unary(
            f"/{protos.PREDICTION_SERVICE}/Predict",
            request_serializer=protos.PredictRequest.SerializeToString,
        )
        with left_behind() as found:
            for _ in range(5):
                with pytest.raises(grpc.RpcError, match="y"):
                    predict(request)
    assert server.stop(10)
    assert not our_frames(found)

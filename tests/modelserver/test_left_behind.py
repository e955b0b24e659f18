"""What fails in the model server is let go of at once: requests, and versions that cannot be loaded."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf

from serving import protos, tensors
from serving.modelserver.batching import BatchScheduler
from serving.modelserver.batching_servable import BatchingServable
from serving.modelserver.core import ServerCore
from serving.modelserver.lifecycle import State
from serving.modelserver.loading import Loading
from serving.modelserver.manager import ModelManager, RetryPolicy
from serving.modelserver.metrics import MOST_STRANGERS, Metrics
from serving.modelserver.predict import PredictOptions
from serving.modelserver.rest import RestApi
from serving.modelserver.rpc import Listening, RpcServer
from serving.modelserver.servable import LoadOptions
from serving.modelserver.services import Services
from tests.modelserver import models
from tests.modelserver.conftest import config_of
from tests.modelserver.process import until
from tests.modelserver.test_batching import options
from tests.modelserver.test_batching_servable import Doubling
from tests.modelserver.test_conformance_predict import request
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


def test_a_batch_is_not_held_by_the_thread_that_ran_it_until_the_next_one_comes() -> None:
    servable = BatchingServable(Doubling(), BatchScheduler(options()), Metrics())
    given = np.ones(1, np.float32)
    held = weakref.ref(given)
    servable.run({"x:0": given}, ["y:0"])
    del given
    until(lambda: held() is None, "it is let go of")
    servable.close()


def graphs() -> int:
    """How many of TensorFlow's graphs there are."""
    return sum(type(each) is tf.Graph for each in gc.get_objects())


def without_variables(version: Path) -> None:
    (version / "variables" / "variables.data-00000-of-00001").write_bytes(b"")


def with_a_warm_up_request_that_fails(version: Path) -> None:
    log = protos.PredictionLog(
        predict_log={"request": request("m", "number", s=np.array([b"no number"], object))}
    )
    models.warmup_records(version, [log.SerializeToString()])


@pytest.mark.parametrize("is_batching", [False, True], ids=["alone", "in batches"])
@pytest.mark.parametrize(
    ("model", "spoil", "told"),
    [
        ("half_plus_two", without_variables, "RestoreV2"),
        ("kinds", with_a_warm_up_request_that_fails, "no number"),
    ],
)
def test_a_version_that_cannot_be_loaded_leaves_no_graph(
    model: str, spoil: Callable[[Path], None], told: str, is_batching: bool, zoo: Path, tmp_path: Path
) -> None:
    """Its state is kept, with the error: neither may hold the weights."""
    version = Path(shutil.copytree(zoo / model / "1", tmp_path / "1"))
    spoil(version)
    scheduler = BatchScheduler(options()) if is_batching else None
    loading = Loading(LoadOptions(), Metrics(), 1, True, scheduler)
    gc.collect()
    before = graphs()
    manager = ModelManager(loading.load, RetryPolicy(1, 0.0), 1)
    manager.want("m", {1: version})
    until(lambda: manager.states("m")[1].error is not None, "both tries failed")
    assert manager.close(10)
    assert told in str(manager.states("m")[1].error)
    assert graphs() == before


def test_names_of_no_model_are_counted_by_themselves_as_long_as_there_are_few() -> None:
    manager = ModelManager(lambda *_: Echo("x"), RetryPolicy(0, 0.0), 1)
    core, metrics = ServerCore(manager, poll_wait_s=-1), Metrics()
    core.reload(config_of({"name": "m", "base_path": "/m"}), is_waiting=False)
    api = RestApi(Services(core, PredictOptions(), metrics))
    for name in (*(f"no-{number}" for number in range(10 * MOST_STRANGERS)), "long" * 1000, "m"):
        status, _ = api.answer("POST", f"/v1/models/{name}:predict", b'{"instances": [1.0]}')
        assert status == 404
    counted = metrics.request_count.lines()[1:]
    assert len(counted) == MOST_STRANGERS + 2
    assert {count.rpartition(" ")[2] for count in counted} == {"1", str(9 * MOST_STRANGERS + 1)}
    assert ':tensorflow:serving:request_count{model_name="m",status="NOT_FOUND"} 1' in counted

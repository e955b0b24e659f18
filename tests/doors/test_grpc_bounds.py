"""What calls over gRPC take, need and are told beyond their answers: room, a key, readiness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from structlog.testing import capture_logs

from serving import protos, tensors
from serving.errors import Internal, InvalidInput
from serving.prediction import RequestContext
from serving.rpc.call import as_kind
from tests.doors.credentials import keys_command
from tests.doors.replica import ScriptedReplica
from tests.support.fake_replica import TIME_LEFT_S, running
from tests.support.gateways import counted, gateway_over


def call(channel: grpc.aio.Channel, service: str, method: str) -> Any:
    """A unary method."""
    request, response = protos.methods(service)[method]
    return channel.unary_unary(
        f"/{service}/{method}",
        request_serializer=request.SerializeToString,
        response_deserializer=response.FromString,
    )


def infer_request(images: int = 1) -> Any:
    """So many images as raw bytes."""
    request = protos.ModelInferRequest(model_name="digits", raw_input_contents=[bytes([200]) * 64 * images])
    request.inputs.add(name="images", datatype="UINT8", shape=[images, 8, 8, 1])
    return request


def predict_request(images: int = 1) -> Any:
    """So many images as a tensor."""
    request = protos.PredictRequest()
    request.model_spec.name = "digits"
    request.inputs["images"].CopyFrom(tensors.to_proto(np.full((images, 8, 8, 1), 200, np.uint8)))
    return request


async def test_a_replica_has_as_long_for_tensors_as_their_caller_waits(replica: ScriptedReplica) -> None:
    left_s: list[float] = []

    async def note(_request: Any) -> None:
        left_s.append(TIME_LEFT_S.get() or 0.0)

    replica.before_predict = note
    async with (
        gateway_over(replica) as (up, _),
        grpc.aio.insecure_channel(up.grpc_address) as channel,
    ):
        await call(channel, protos.PREDICTION_SERVICE, "Predict")(predict_request(), timeout=7)
    (had_s,) = left_s
    assert 0 < had_s <= 7.1  # gRPC rounds up


async def test_replicas_are_given_new_models_within_the_callers_deadline(key_file: Path) -> None:
    left_s: list[float | None] = []

    class Noting(ScriptedReplica):
        async def reload(self, request: Any) -> Any:
            left_s.append(TIME_LEFT_S.get())
            return await super().reload(request)

    admin = keys_command("add", "root", "--scope=admin", f"--file={key_file}")
    message = protos.ReloadConfigRequest()
    message.config.model_config_list.config.add(name="digits", base_path="/models/digits")
    async with (
        running(Noting()) as replica,
        gateway_over(replica, keys_file=key_file) as (up, _),
        grpc.aio.insecure_channel(up.grpc_address) as channel,
    ):
        reload = call(channel, protos.MODEL_SERVICE, "HandleReloadConfigRequest")
        await reload(message, timeout=7, metadata=(("authorization", f"Bearer {admin}"),))
    (had_s,) = left_s
    assert had_s is not None
    assert 0 < had_s <= 7.1  # gRPC rounds up


@pytest.mark.parametrize(
    ("service", "method", "make"),
    [
        (protos.OPEN_INFERENCE, "ModelInfer", infer_request),
        (protos.PREDICTION_SERVICE, "Predict", predict_request),
    ],
    ids=("infer", "predict"),
)
async def test_a_message_of_tensors_takes_room_for_all_of_it(
    replica: ScriptedReplica, service: str, method: str, make: Any
) -> None:
    async with (
        gateway_over(replica, max_in_flight_bytes=1000) as (running, _),
        grpc.aio.insecure_channel(running.grpc_address) as channel,
    ):
        ask = call(channel, service, method)
        assert (await ask(make(1))).outputs
        with pytest.raises(grpc.aio.AioRpcError, match="the request has over 1,000 bytes") as refused:
            await ask(make(20))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert running.gateway.admission.held_bytes == 0


@pytest.mark.parametrize(
    "method", [f"{protos.IMAGE_CLASSIFICATION}/ClassifyStream", f"{protos.OPEN_INFERENCE}/ModelStreamInfer"]
)
async def test_a_stream_ends_at_once_without_a_key_and_that_is_counted(
    replica: ScriptedReplica, key_file: Path, method: str
) -> None:
    """And does not answer each of its requests with that."""
    key = keys_command("add", "someone", "--file", str(key_file))
    async with (
        gateway_over(replica, keys_file=key_file) as (up, _),
        grpc.aio.insecure_channel(up.grpc_address) as channel,
    ):
        stream: Any = channel.stream_stream(f"/{method}")
        assert await stream(iter([b""])).code() is grpc.StatusCode.UNAUTHENTICATED
        assert counted(up, "sluice_requests_refused_total", reason="credentials") == 1
        assert counted(up, "sluice_requests_total", protocol="grpc", outcome="unauthenticated") == 1
        with_key = stream(iter([b"", b""]), metadata=(("authorization", f"Bearer {key}"),))
        assert len([each async for each in with_key]) == 2
        assert counted(up, "sluice_requests_total", outcome="unauthenticated") == 1, "each has its key"


async def test_a_stream_says_at_its_end_which_request_it_was(replica: ScriptedReplica) -> None:
    async with (
        gateway_over(replica) as (running, _),
        grpc.aio.insecure_channel(running.grpc_address) as channel,
    ):
        stream: Any = channel.stream_stream(f"/{protos.IMAGE_CLASSIFICATION}/ClassifyStream")
        call = stream(iter([b""]), metadata=(("x-request-id", "job-7"),))
        assert len([each async for each in call]) == 1
        assert dict(await call.trailing_metadata())["x-request-id"] == "job-7"


def test_what_nobody_foresaw_is_logged_and_told_without_its_text() -> None:
    context = RequestContext("job-7", "grpc", 0.0)
    with capture_logs() as lines:
        told = as_kind(error := ValueError("secret"), context)
        assert as_kind(refusal := InvalidInput("wrong"), context) is refusal
    assert (type(told), told.message) == (
        Internal,
        "the request failed unexpectedly; the log says how",
    )
    (line,) = lines
    assert (line["event"], line["request_id"]) == ("a request failed unexpectedly", "job-7")
    assert line["exc_info"] is error


async def test_a_gateway_that_lacks_a_model_is_live_and_not_ready(replica: ScriptedReplica) -> None:
    async with (
        gateway_over(replica, models=("digits", "other"), wait=False) as (running, _),
        grpc.aio.insecure_channel(running.grpc_address) as channel,
    ):
        live = call(channel, protos.OPEN_INFERENCE, "ServerLive")
        ready = call(channel, protos.OPEN_INFERENCE, "ServerReady")
        live_request, ready_request = (
            protos.methods(protos.OPEN_INFERENCE)[method][0] for method in ("ServerLive", "ServerReady")
        )
        assert (await live(live_request())).live
        assert not (await ready(ready_request())).ready
        replica.versions = {"digits": {1}, "other": {1}}
        await running.catalog.ready()
        assert (await ready(ready_request())).ready


async def test_no_classes_stand_for_the_scores(replica: ScriptedReplica) -> None:
    async with (
        gateway_over(replica) as (running, _),
        grpc.aio.insecure_channel(running.grpc_address) as channel,
    ):
        request = infer_request()
        wanted = request.outputs.add(name="scores")
        infer = call(channel, protos.OPEN_INFERENCE, "ModelInfer")
        for _ in range(2):
            (scores,) = (await infer(request)).outputs
            assert (scores.datatype, list(scores.shape)) == ("FP32", [1, 10])
            wanted.parameters["classification"].int64_param = 0

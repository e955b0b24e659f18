"""The states of a model's versions over TensorFlow Serving's API: as the original has them, or none."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import httpx
import pytest

from serving import protos
from serving.main import Running
from tests.doors.replica import ScriptedReplica
from tests.support.fake_replica import FakeReplica, running
from tests.support.gateways import gateway_over

MODEL = "/v1/models/digits"
DATA_LOSS = 15


class InEveryState(ScriptedReplica):
    """Has a version that is loading, one that serves, one that is unloading, and a damaged one."""

    async def status(self, _request: Any) -> Any:
        """Lists the highest version first, as the original does."""
        response = protos.GetModelStatusResponse()
        for version, state in ((10, "END"), (9, "LOADING"), (2, "AVAILABLE"), (1, "UNLOADING")):
            response.model_version_status.add(version=version, state=state)
        response.model_version_status[0].status.error_code = DATA_LOSS
        response.model_version_status[0].status.error_message = "Can't parse saved_model.pb as binary proto"
        return response


async def status_over_grpc(up: Running, **spec: Any) -> Any:
    request = protos.GetModelStatusRequest()
    request.model_spec.name = spec["name"]
    if "version" in spec:
        request.model_spec.version.value = spec["version"]
    async with grpc.aio.insecure_channel(up.grpc_address) as channel:
        call: Any = channel.unary_unary(
            f"/{protos.MODEL_SERVICE}/GetModelStatus",
            request_serializer=protos.GetModelStatusRequest.SerializeToString,
            response_deserializer=protos.GetModelStatusResponse.FromString,
        )
        return await call(request)


async def test_the_highest_version_comes_first_and_each_with_the_replicas_own_error() -> None:
    replica = InEveryState(versions={"digits": {2}})
    async with running(replica), gateway_over(replica) as (up, client):
        told = (await client.get(MODEL)).json()["model_version_status"]
        shown = [(each["version"], each["state"], each["status"]["error_code"]) for each in told]
        assert shown == [
            ("10", "END", "DATA_LOSS"),
            ("9", "LOADING", "OK"),
            ("2", "AVAILABLE", "OK"),
            ("1", "UNLOADING", "OK"),
        ]
        assert told[0]["status"]["error_message"] == "Can't parse saved_model.pb as binary proto"
        response = await status_over_grpc(up, name="digits")
        assert [each.version for each in response.model_version_status] == [10, 9, 2, 1]
        assert response.model_version_status[0].status.error_code == DATA_LOSS


@pytest.mark.parametrize("path", [MODEL, f"{MODEL}/versions/1"])
async def test_a_model_is_not_said_to_be_missing_while_no_replica_can_be_asked(path: str) -> None:
    """A client that waits for the model would give up, and monitoring would alert the wrong person."""
    async with running(FakeReplica()) as gone:
        pass
    async with gateway_over(gone, wait=False) as (up, client):
        answer = await client.get(path)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert answer.json() == {"error": 'model "digits" has no version that can be reached at the moment'}
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await status_over_grpc(up, name="digits")
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert (await client.get("/v1/models/nope")).status_code == 404


async def test_a_model_that_replicas_have_nothing_of_is_missing() -> None:
    async with (
        running(FakeReplica()) as other,
        gateway_over(other, models=("digits", "gone"), wait=False) as (
            up,
            client,
        ),
    ):
        await up.catalog.refreshed()
        answer: httpx.Response = await client.get("/v1/models/gone")
        assert (answer.status_code, answer.json()) == (
            404,
            {"error": "Could not find any versions of model gone"},
        )

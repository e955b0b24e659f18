"""The gRPC API, over a scripted replica, with nothing but grpcio on the client's side."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from serving import prediction, protos
from serving.durations import LONGEST_S
from serving.errors import InvalidInput
from tests.support.fake_replica import FakeReplica, running, until
from tests.support.gateways import counted, gateway_over, gateway_to_end
from tests.support.pictures import encoded, gradient


def classify(channel: grpc.aio.Channel) -> Any:
    request, response = protos.methods(protos.IMAGE_CLASSIFICATION)["Classify"]
    return channel.unary_unary(
        f"/{protos.IMAGE_CLASSIFICATION}/Classify",
        request_serializer=request.SerializeToString,
        response_deserializer=response.FromString,
    )


PNG = encoded(gradient(8, 8, "L").point(lambda _: 200), "PNG")


async def test_images_get_their_classes() -> None:
    async with (
        running(FakeReplica()) as fake,
        gateway_over(fake) as (up, _),
        grpc.aio.insecure_channel(up.grpc_address) as channel,
    ):
        request = protos.ClassifyRequest(model="digits", images=[PNG, b"nonsense", PNG], top_k=2)
        answer = await classify(channel)(request)
        assert (answer.model, answer.version) == ("digits", 1)
        first, second, third = answer.results
        assert [each.label for each in first.classes] == ["class-7", "class-0"]
        assert first == third
        assert second.error.kind == "bad-image"
        answer = await classify(channel)(protos.ClassifyRequest(images=[PNG]))
        assert answer.model == "digits"
        assert len(answer.results[0].classes) == 5
        labels = {"protocol": "grpc", "model": "digits", "version": "1", "outcome": "ok"}
        assert counted(up, "sluice_requests_total", **labels) == 2


async def test_a_large_answer_says_what_a_small_one_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large one is serialized off the event loop, image by image."""
    request = protos.ClassifyRequest(images=[PNG, b"nonsense", PNG], top_k=10, id="mine")
    answers = []
    async with (
        running(FakeReplica()) as fake,
        gateway_over(fake) as (up, _),
        grpc.aio.insecure_channel(up.grpc_address) as channel,
    ):
        for most in (20, 19):
            monkeypatch.setattr(prediction, "_MANY_CLASSES", most)
            answers.append(await classify(channel)(request))
    assert answers[0] == answers[1]
    assert [len(each.classes) for each in answers[1].results] == [10, 0, 10]


@pytest.mark.parametrize(
    ("fields", "code", "reason", "text"),
    [
        ({"model": "resent", "images": [PNG]}, "NOT_FOUND", "not-found", "there are: digits"),
        ({"model": "digits", "version": 9, "images": [PNG]}, "NOT_FOUND", "not-found", "there are: 1"),
        ({"images": []}, "INVALID_ARGUMENT", "invalid-input", "no image"),
        ({"images": [PNG], "top_k": 0}, "INVALID_ARGUMENT", "invalid-input", "top_k is 0"),
        ({"images": [PNG], "version": -1}, "INVALID_ARGUMENT", "invalid-input", "version is -1"),
    ],
)
async def test_errors_have_a_code_a_reason_and_a_text(
    fields: dict[str, Any], code: str, reason: str, text: str
) -> None:
    async with (
        running(FakeReplica()) as fake,
        gateway_over(fake) as (up, _),
        grpc.aio.insecure_channel(up.grpc_address) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await classify(channel)(protos.ClassifyRequest(**fields))
        assert caught.value.code().name == code
        assert text in str(caught.value.details())
        status = rpc_status.from_call(caught.value)
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert (info.reason, info.domain) == (reason, "sluice")


async def test_without_a_replica_the_status_says_when_to_come_back() -> None:
    async with running(FakeReplica()) as fake:
        pass
    async with (
        gateway_over(fake, wait=False) as (up, _),
        grpc.aio.insecure_channel(up.grpc_address) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await classify(channel)(protos.ClassifyRequest(images=[PNG]))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        retry = error_details_pb2.RetryInfo()
        assert rpc_status.from_call(caught.value).details[1].Unpack(retry)
        assert retry.retry_delay.seconds >= 1


async def test_the_calls_deadline_counts() -> None:
    async def hang(_request: Any) -> None:
        await asyncio.Event().wait()

    async with (
        running(FakeReplica()) as fake,
        gateway_over(fake) as (up, _),
        grpc.aio.insecure_channel(up.grpc_address) as channel,
    ):
        fake.before_predict = hang
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await classify(channel)(protos.ClassifyRequest(images=[PNG]), timeout=0.3)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: up.gateway.admission.in_flight == 0)


async def test_old_connections_are_made_anew_and_no_call_notices() -> None:
    async with (
        running(FakeReplica()) as fake,
        gateway_over(fake, connection_age_s=0.1) as (up, _),
        grpc.aio.insecure_channel(up.grpc_address) as channel,
    ):
        ends = 0

        async def count() -> None:
            nonlocal ends
            while True:
                state = channel.get_state(try_to_connect=True)
                await channel.wait_for_state_change(state)
                ends += state is grpc.ChannelConnectivity.READY

        counting = asyncio.create_task(count())
        async with asyncio.timeout(60):
            while ends < 3:
                await classify(channel)(protos.ClassifyRequest(model="digits", images=[PNG]))
        counting.cancel()


async def test_a_connection_may_get_as_old_as_the_settings_allow() -> None:
    """gRPC counts milliseconds in 31 bits, which hold less than that."""
    async with (
        running(FakeReplica()) as fake,
        gateway_over(fake, connection_age_s=LONGEST_S) as (up, _),
        grpc.aio.insecure_channel(up.grpc_address) as channel,
    ):
        assert (await classify(channel)(protos.ClassifyRequest(images=[PNG]))).results


async def test_a_client_may_ping_while_it_waits_and_while_it_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.rpc.server._PING_INTERVAL_MS", 500)
    pings = (
        ("grpc.keepalive_time_ms", 1000),  # grpc's clients ping no more often
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    )

    async def take_long(_request: Any) -> None:
        await asyncio.sleep(6)  # at its third ping that comes too soon a client is cut off

    async with (
        running(FakeReplica(before_predict=take_long)) as fake,
        gateway_over(fake) as (up, _),
        grpc.aio.insecure_channel(up.grpc_address, pings) as channel,
        grpc.aio.insecure_channel(up.grpc_address, (*pings, ("grpc.use_local_subchannel_pool", 1))) as idle,
    ):
        await idle.channel_ready()
        cut_off = asyncio.create_task(idle.wait_for_state_change(grpc.ChannelConnectivity.READY))
        answer = await classify(channel)(protos.ClassifyRequest(model="digits", images=[PNG]))
        assert answer.results[0].classes[0].label == "class-7"
        assert not cut_off.done(), "nor one that asks for nothing"
        cut_off.cancel()


async def test_draining_answers_the_calls_in_flight_and_takes_no_more() -> None:
    entered, gate = asyncio.Event(), asyncio.Event()

    async def hold(_request: Any) -> None:
        entered.set()
        await gate.wait()

    async def is_refused(address: str) -> bool:
        async with grpc.aio.insecure_channel(address) as stranger:
            call = classify(stranger)(protos.ClassifyRequest(images=[]), timeout=20)
            return bool(await call.code() is grpc.StatusCode.UNAVAILABLE)

    async with (
        running(FakeReplica(before_predict=hold)) as fake,
        gateway_to_end(fake) as (up, leave, ended),
        grpc.aio.insecure_channel(up.grpc_address) as channel,
        asyncio.timeout(60),
    ):
        in_flight = classify(channel)(protos.ClassifyRequest(images=[PNG]))
        await entered.wait()
        leave.set()
        while not await is_refused(up.grpc_address):
            await asyncio.sleep(0.01)
        assert not in_flight.done()
        gate.set()
        assert (await in_flight).results[0].classes
        await ended


async def test_health_follows_the_models() -> None:
    async with (
        running(FakeReplica()) as fake,
        gateway_over(fake) as (up, _),
        grpc.aio.insecure_channel(up.grpc_address) as channel,
    ):
        check = health_pb2_grpc.HealthStub(channel).Check
        serving = health_pb2.HealthCheckResponse.SERVING
        not_serving = health_pb2.HealthCheckResponse.NOT_SERVING

        async def until_status(status: int) -> None:
            async with asyncio.timeout(60):
                while (await check(health_pb2.HealthCheckRequest())).status != status:
                    await asyncio.sleep(0.01)

        await until_status(serving)
        fake.versions = {"digits": set()}
        await until_status(not_serving)
        fake.versions = {"digits": {3}}
        await until_status(serving)


async def test_reflection_lists_every_service_and_gives_its_messages() -> None:
    async with running(FakeReplica()) as fake, gateway_over(fake) as (up, _):

        def look() -> tuple[list[str], list[str]]:
            with grpc.insecure_channel(up.grpc_address) as channel:
                database = ProtoReflectionDescriptorDatabase(channel)
                file = database.FindFileContainingSymbol("sluice.v1.ClassifyRequest")
                return list(database.get_services()), [message.name for message in file.message_type]

        services, messages = await asyncio.to_thread(look)
        assert {
            "sluice.v1.ImageClassification",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
            "grpc.reflection.v1.ServerReflection",
        } <= set(services)
        assert "ClassifyRequest" in messages


@pytest.mark.parametrize(
    ("service", "method", "message"),
    [
        (protos.IMAGE_CLASSIFICATION, "Classify", "sluice.v1.ClassifyRequest"),
        (protos.PREDICTION_SERVICE, "Predict", "tensorflow.serving.PredictRequest"),
        (protos.OPEN_INFERENCE, "ModelStreamInfer", "inference.ModelInferRequest"),
    ],
)
async def test_bytes_that_are_no_message_are_the_callers_fault(
    service: str, method: str, message: str
) -> None:
    async with (
        running(FakeReplica()) as fake,
        gateway_over(fake) as (up, _),
        grpc.aio.insecure_channel(up.grpc_address) as channel,
    ):
        call: Any = channel.stream_stream if "Stream" in method else channel.unary_unary
        sent = call(f"/{service}/{method}")([b"\xff\xff"] if "Stream" in method else b"\xff\xff")
        assert await sent.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert await sent.details() == f"the 2 bytes of the request are not a {message}"
        assert counted(up, "sluice_requests_total", protocol="grpc", outcome="invalid-input") == 1


async def test_a_port_that_cannot_be_had_comes_with_the_reason(capfd: pytest.CaptureFixture[str]) -> None:
    async with running(FakeReplica()) as fake:
        with pytest.raises(InvalidInput) as foreign:
            await _start_and_end(fake, grpc_host="192.0.2.1")  # RFC 5737: nobody's
        assert foreign.value.message == (
            "cannot listen on 192.0.2.1:0 for gRPC: Cannot assign requested address"
        )
        async with gateway_over(fake) as (up, _):
            port = int(up.grpc_address.rpartition(":")[2])
            with pytest.raises(InvalidInput) as taken:
                await _start_and_end(fake, grpc_port=port)
        assert taken.value.message == (
            f"cannot listen on 127.0.0.1:{port} for gRPC: Address already in use; "
            "--grpc-port names another, 0 any free one"
        )
    assert capfd.readouterr().err == "", "gRPC has nothing to log"


async def _start_and_end(fake: FakeReplica, **settings: Any) -> None:
    async with gateway_over(fake, **settings):
        pass


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="there is no IPv6 here")
async def test_it_listens_on_an_ipv6_address() -> None:
    async with running(FakeReplica()) as fake, gateway_over(fake, grpc_host="::1") as (up, _):
        assert up.grpc_address.startswith("[::1]:")
        async with grpc.aio.insecure_channel(up.grpc_address) as channel:
            answer = await classify(channel)(protos.ClassifyRequest(images=[PNG]))
        assert answer.model == "digits"

"""A client with no stubs at all: grpcio, server reflection, and what the server says of itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection_pb2

from tests.doors.conftest import Live


@pytest.fixture(scope="module")
def channel(live: Live) -> Iterator[Any]:
    with grpc.insecure_channel(live.grpc_address) as channel:
        yield channel


def ask(channel: Any, protocol: str = "v1alpha", **request: str) -> Any:
    """What the server reports by reflection; both versions of the protocol have the same messages."""
    call = channel.stream_stream(
        f"/grpc.reflection.{protocol}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    (answer,) = call(iter([reflection_pb2.ServerReflectionRequest(**request)]))
    return answer


def described(channel: Any, symbol: str) -> descriptor_pool.DescriptorPool:
    """A pool with the file of `symbol` and all that it imports, each asked of the server."""
    pool = descriptor_pool.DescriptorPool()
    added: set[str] = set()

    def add(answer: Any) -> None:
        for serialized in answer.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(serialized)
            if file.name in added:
                continue
            added.add(file.name)
            for dependency in file.dependency:
                add(ask(channel, file_by_filename=dependency))
            pool.Add(file)

    add(ask(channel, file_containing_symbol=symbol))
    return pool


def call(channel: Any, service: str, method: str, /, **fields: Any) -> Any:
    pool = described(channel, service)
    found = pool.FindServiceByName(service).methods_by_name[method]
    request = message_factory.GetMessageClass(found.input_type)
    response = message_factory.GetMessageClass(found.output_type)
    invoke = channel.unary_unary(
        f"/{service}/{method}",
        request_serializer=request.SerializeToString,
        response_deserializer=response.FromString,
    )
    return invoke(request(**fields), timeout=30)


def test_every_service_is_listed_and_described(channel: Any) -> None:
    listed = {each.name for each in ask(channel, list_services="").list_services_response.service}
    assert listed >= {
        "sluice.v1.ImageClassification",
        "tensorflow.serving.PredictionService",
        "tensorflow.serving.ModelService",
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "grpc.reflection.v1.ServerReflection",
    }
    for service in listed:
        pool = described(channel, service)
        assert pool.FindServiceByName(service).methods


@pytest.mark.parametrize(
    "request_",
    [
        {"list_services": ""},
        {"file_containing_symbol": "sluice.v1.ImageClassification"},
        {"file_containing_symbol": "grpc.reflection.v1.ServerReflectionRequest"},
        {"file_by_filename": "grpc/reflection/v1/reflection.proto"},
        {"file_containing_symbol": "no.such.Thing"},
    ],
)
def test_the_protocols_first_version_says_what_the_one_before_says(
    channel: Any, request_: dict[str, str]
) -> None:
    answer = ask(channel, "v1", **request_)
    assert answer == ask(channel, "v1alpha", **request_)
    assert answer.HasField("error_response") == ("no.such.Thing" in request_.values())


def test_the_photograph_is_classified(live: Live, channel: Any, photograph: bytes) -> None:
    answer = call(channel, "sluice.v1.ImageClassification", "Classify", images=[photograph], top_k=1)
    assert answer.version == live.version
    assert answer.results[0].classes[0].label == live.label
    answer = call(channel, "tensorflow.serving.ModelService", "GetModelStatus", model_spec={"name": "digits"})
    assert [each.version for each in answer.model_version_status] == [live.version]
    answer = call(channel, "inference.GRPCInferenceService", "ModelReady", name="digits")
    assert answer.ready
    answer = call(channel, "grpc.health.v1.Health", "Check", service="digits")
    assert answer.DESCRIPTOR.full_name == "grpc.health.v1.HealthCheckResponse"
    assert answer.status in (1, 2)  # a loaded machine may be between two looks at its replica

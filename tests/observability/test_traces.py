"""Traces as a collector receives them, over OTLP and a real socket."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import grpc
import grpc.aio
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from serving.commands.serve import SAMPLE
from serving.errors import InvalidInput
from serving.routing import Split
from serving.telemetry.tracing import child_of, request_id_from
from tests.support.fake_replica import FakeReplica, Refusal, running, until
from tests.support.gateways import gateway_over

PATH = "/v1/models/digits:classify"
PNG = {"content-type": "image/png"}
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
# A span begins at the time of its end less what a monotonic clock measured.
CLOCKS_APART_NS = 1_000_000


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans in and keeps them."""

    spans: list[Any] = field(default_factory=list)
    services: set[tuple[str, str]] = field(default_factory=set)
    endpoint: str = ""

    async def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            about = attributes(resource.resource)
            self.services.add((about["service.name"], about["service.version"]))
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()

    def named(self, name: str) -> list[Any]:
        """The spans of this name."""
        return [span for span in self.spans if span.name == name]


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    server, collector = grpc.aio.server(), Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield collector
    finally:
        await server.stop(None)


def attributes(span: Any) -> dict[str, str]:
    return {
        each.key: str(getattr(each.value, str(each.value.WhichOneof("value")))) for each in span.attributes
    }


class Listening(grpc.GenericRpcHandler):
    """Serves nothing, and hears the `traceparent` of every call to PredictionService/Predict."""

    def __init__(self) -> None:
        self.heard: list[str | None] = []

    def service(self, details: grpc.HandlerCallDetails) -> None:
        if details.method.endswith("/Predict"):
            metadata = {str(key): str(value) for key, value in details.invocation_metadata}
            self.heard.append(metadata.get("traceparent"))


@dataclass
class ListeningReplica(FakeReplica):
    """A replica that keeps the traces that it is told of."""

    listening: Listening = field(default_factory=Listening)

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        return [self.listening, *super().handlers()]


async def test_a_request_its_stages_and_its_batch_are_one_trace() -> None:
    async with collecting() as collector, running(ListeningReplica()) as replica:
        assert isinstance(replica, ListeningReplica)
        settings: dict[str, Any] = {"traces_endpoint": collector.endpoint, "traces_share": 0.0}
        async with gateway_over(replica, **settings) as (_, client):
            sent = PNG | {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "job-1"}
            sent_at = time.time_ns() - CLOCKS_APART_NS
            answer = await client.post(PATH, content=SAMPLE.read_bytes(), headers=sent)
            assert answer.status_code == 200
            # Neither a caller that does not record, nor a share of 0, makes a span.
            unrecorded = PNG | {"traceparent": f"00-{TRACE}-{PARENT}-00"}
            for headers in (PNG, unrecorded):
                await client.post(PATH, content=SAMPLE.read_bytes(), headers=headers)
        await until(lambda: bool(collector.named("request")))
        (request,) = collector.named("request")
        assert request.trace_id.hex() == TRACE
        assert request.parent_span_id.hex() == PARENT
        assert request.span_id.hex() == answer.headers["traceparent"].split("-")[2]
        about = attributes(request)
        assert about == {
            "sluice.protocol": "http",
            "sluice.model": "digits",
            "sluice.version": "1",
            "sluice.outcome": "ok",
            "sluice.request_id": "job-1",
        }
        assert request.kind == Span.SPAN_KIND_SERVER
        assert sent_at <= request.start_time_unix_nano
        began = request.start_time_unix_nano
        for stage in ("admission", "read", "decode", "queue", "backend"):
            (span,) = collector.named(stage)
            assert span.parent_span_id == request.span_id
            assert span.start_time_unix_nano == pytest.approx(began, abs=1000), "one after the other"
            assert span.end_time_unix_nano >= span.start_time_unix_nano
            began = span.end_time_unix_nano
        assert began <= request.end_time_unix_nano + CLOCKS_APART_NS
        (batch,) = collector.named("batch")
        assert attributes(batch) == {
            "sluice.model": "digits",
            "sluice.version": "1",
            "sluice.batch_size": "1",
        }
        assert batch.kind == Span.SPAN_KIND_CLIENT
        assert request.start_time_unix_nano <= batch.start_time_unix_nano < batch.end_time_unix_nano
        assert [link.span_id for link in batch.links] == [request.span_id]
        # The replica hears of the batch's span; of requests that are not recorded it hears nothing.
        told = [each for each in replica.listening.heard if each is not None]
        assert told == [f"00-{TRACE}-{batch.span_id.hex()}-01"]
        assert len(replica.listening.heard) >= 3
        assert collector.services == {("sluice", version("sluice"))}


async def test_a_batch_is_linked_to_every_request_in_it() -> None:
    async with collecting() as collector, running(FakeReplica()) as replica:
        settings: dict[str, Any] = {
            "traces_endpoint": collector.endpoint,
            "traces_share": 1.0,
            "calls_per_replica": 1,
        }
        async with gateway_over(replica, **settings) as (_, client):
            posts = [client.post(PATH, content=SAMPLE.read_bytes(), headers=PNG) for _ in range(12)]
            assert {answer.status_code for answer in await asyncio.gather(*posts)} == {200}
            bad = await client.post(PATH, content=b"nonsense", headers=PNG)
            assert bad.status_code == 400
        assert len(collector.named("request")) == 13, "what was left is sent at the end"
        requests = {span.span_id for span in collector.named("request")}
        batches = collector.named("batch")
        linked = [link.span_id for batch in batches for link in batch.links]
        assert len(linked) == 12
        assert set(linked) < requests
        outcomes = [attributes(span)["sluice.outcome"] for span in collector.named("request")]
        assert sorted(set(outcomes)) == ["bad-image", "ok"]


async def test_a_request_of_several_images_is_linked_to_once() -> None:
    async with collecting() as collector, running(FakeReplica()) as replica:
        settings: dict[str, Any] = {"traces_endpoint": collector.endpoint, "traces_share": 1.0}
        async with gateway_over(replica, **settings) as (_, client):
            image = ("images", ("image.png", SAMPLE.read_bytes(), "image/png"))
            assert (await client.post(PATH, files=[image] * 3)).status_code == 200
    (request,) = collector.named("request")
    batches = collector.named("batch")
    assert sum(int(attributes(batch)["sluice.batch_size"]) for batch in batches) == 3
    for batch in batches:
        assert [link.span_id for link in batch.links] == [request.span_id]
    assert request.parent_span_id == b""


async def test_a_request_that_the_service_failed_is_marked_and_a_callers_own_mistake_is_not() -> None:
    async def fail(_request: Any) -> None:
        raise Refusal(grpc.StatusCode.INTERNAL)

    async def hang(_request: Any) -> None:
        await asyncio.Event().wait()

    replica = FakeReplica(versions={"digits": {1, 2}})
    async with collecting() as collector, running(replica):
        settings: dict[str, Any] = {"traces_endpoint": collector.endpoint, "traces_share": 1.0}
        async with gateway_over(replica, **settings) as (up, client):
            up.gateway.steering.set_split("digits", Split(1, 2, 1.0, 0.0, "salt"), None)
            await client.post(PATH, content=b"nonsense", headers=PNG)
            replica.before_predict = fail
            await client.post(PATH, content=SAMPLE.read_bytes(), headers=PNG)
            replica.before_predict = hang
            await client.post(PATH, content=SAMPLE.read_bytes(), headers=PNG | {"x-request-timeout": "0.05"})
            replica.versions["digits"] = set()
            await client.post(PATH, content=SAMPLE.read_bytes(), headers=PNG)
        await until(lambda: len(collector.named("request")) == 4)
    found = {attributes(span)["sluice.outcome"]: span for span in collector.named("request")}
    failed = {outcome for outcome, span in found.items() if span.status.code == Status.STATUS_CODE_ERROR}
    assert found.keys() - failed == {"bad-image"}
    assert failed == {"internal", "deadline-exceeded", "unavailable"}
    assert {attributes(span)["sluice.arm"] for span in found.values()} == {"candidate"}


async def test_a_collector_that_is_away_costs_no_answer() -> None:
    async with running(FakeReplica()) as replica:
        settings: dict[str, Any] = {"traces_endpoint": "http://127.0.0.1:9", "traces_share": 1.0}
        async with gateway_over(replica, **settings) as (_, client):
            answer = await client.post(PATH, content=SAMPLE.read_bytes(), headers=PNG)
            assert answer.status_code == 200


def test_a_callers_trace_is_taken_up_if_it_is_one() -> None:
    given = f"00-{TRACE}-{PARENT}-01"
    assert (child_of(given).trace_id, child_of(given).parent_id) == (TRACE, PARENT)
    assert child_of(f"01{given[2:]}-more").parent_id == PARENT  # a later version may say more
    no_trace, no_parent = given.replace(TRACE, "0" * 32), given.replace(PARENT, "0" * 16)
    glued = f"01{given[2:]}more"
    for wrong in (f"{given}-more", glued, f"ff{given[2:]}", no_trace, no_parent, given.upper()):
        assert child_of(wrong).parent_id == "", wrong


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True)])
def test_a_callers_trace_is_recorded_if_the_caller_records_it(flags: str, sampled: bool) -> None:
    trace = child_of(f"00-{TRACE}-{PARENT}-{flags}", share=1.0)
    assert trace.sampled == trace.below().sampled == sampled
    assert trace.below().parent_id == trace.span_id
    assert trace.traceparent == f"00-{TRACE}-{trace.span_id}-0{int(sampled)}"


def test_a_callers_request_id_is_taken_if_it_is_a_sane_one() -> None:
    for sane in ("job-1", "a" * 128, "A/b+C=", "x.y_z:9"):
        assert request_id_from(sane) == sane
    for other in ("", "a" * 129, "a b", "a\n", "ä"):
        assert re.fullmatch(r"[0-9a-f]{32}", request_id_from(other)), other


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_a_share_of_new_traces_is_recorded(share: float) -> None:
    recorded = sum(child_of("", share).sampled for _ in range(2000))
    assert abs(recorded - 2000 * share) <= 100


def test_every_program_that_sees_a_trace_decides_alike_whether_to_record_it() -> None:
    """By the last 64 bits of its id, as OpenTelemetry's TraceIdRatioBased does it."""
    for _ in range(100):
        trace = child_of("", 0.3)
        assert trace.sampled == (int(trace.trace_id, 16) % 2**64 < 0.3 * 2**64)


async def test_traces_without_their_packages_are_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = "opentelemetry.exporter.otlp.proto.grpc.trace_exporter"
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "serving.telemetry.spans", raising=False)
    async with running(FakeReplica()) as replica:
        with pytest.raises(InvalidInput, match=f"{missing} is not installed; the extra `traces` brings it"):
            async with gateway_over(replica, wait=False, traces_endpoint="http://127.0.0.1:9"):
                pass

"""The caller and deadline of a gRPC call, and of each message of a stream."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest

from serving.rpc.call import Call, next_message, request_context
from serving.settings import Settings

TRACE = "0af7651916cd43dd8448eb211c80319c"


class ScriptedCall:
    """The parts of a call that its context is made from."""

    def __init__(self, left_s: float | None = None, **metadata: str) -> None:
        self._left_s = left_s
        self._metadata = tuple((name.replace("_", "-"), value) for name, value in metadata.items())

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def time_remaining(self) -> float | None:
        return self._left_s


def context_of(call: ScriptedCall, **settings: Any) -> Any:
    return request_context(cast("Call", call), Settings(**settings))


@pytest.mark.parametrize(("share", "recorded"), [(0.0, False), (1.0, True)])
def test_a_trace_that_begins_here_is_recorded_by_the_share_that_is_set(share: float, recorded: bool) -> None:
    context = context_of(ScriptedCall(), traces_endpoint="http://collector:4317", traces_share=share)
    assert context.trace.sampled is recorded


def test_an_id_that_is_none_is_not_taken() -> None:
    assert context_of(ScriptedCall(x_request_id="job-7")).request_id == "job-7"
    broken = context_of(ScriptedCall(x_request_id="a b\n" * 100))
    assert len(broken.request_id) == len(context_of(ScriptedCall()).request_id)
    assert broken.routing_key == broken.request_id


def test_a_message_of_a_stream_is_of_the_same_caller_and_trace_with_a_time_of_its_own() -> None:
    call = ScriptedCall(
        left_s=60.0,
        x_request_id="job-7",
        x_routing_key="alice",
        authorization="Bearer key",
        traceparent=f"00-{TRACE}-b7ad6b7169203331-01",
    )
    context = context_of(call)
    before = time.monotonic()
    own = next_message(context, 9.0)
    assert (own.request_id, own.protocol, own.routing_key, own.credential) == (
        "job-7",
        "grpc",
        "alice",
        "key",
    )
    assert own.trace is context.trace
    assert own.trace.trace_id == TRACE
    assert before <= own.started <= time.monotonic()
    assert own.deadline == own.started + 9.0

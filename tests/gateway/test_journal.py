"""How requests are written down: what was given up, what each spent its time on, the latest refusals."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from serving.errors import InvalidInput
from serving.journal import Journal
from serving.main import new_metrics
from serving.prediction import RequestContext
from serving.telemetry.logs import AccessLog
from serving.telemetry.tracing import Trace

if TYPE_CHECKING:
    from serving.telemetry.spans import Spans


@pytest.mark.parametrize(
    ("given_up_at", "outcome"),
    [
        pytest.param(101.0, "cancelled", id="long before"),
        pytest.param(111.8, "cancelled", id="before"),
        pytest.param(111.9, "deadline-exceeded", id="as gRPC rounds a deadline"),
        pytest.param(112.0, "deadline-exceeded", id="at it"),
        pytest.param(113.0, "deadline-exceeded", id="after it"),
    ],
)
def test_a_call_that_its_client_cancels_at_the_deadline_has_missed_it(
    given_up_at: float, outcome: str
) -> None:
    journal = Journal(new_metrics(), AccessLog(0.0), clock=lambda: given_up_at)
    context = RequestContext("id", "grpc", deadline=112.0, started=100.0)
    with pytest.raises(asyncio.CancelledError), journal.recorded(context, lambda: "digits"):
        raise asyncio.CancelledError
    assert [each.outcome for each in journal.refusals] == [outcome]


def test_what_nobody_foresaw_is_the_services_own_failure_and_never_an_answer() -> None:
    metrics = new_metrics()
    journal = Journal(metrics, AccessLog(0.0))
    with (
        pytest.raises(ZeroDivisionError),
        journal.recorded(RequestContext("id", "http", 0.0), lambda: "digits"),
    ):
        raise ZeroDivisionError("no luck")
    (refusal,) = journal.refusals
    assert (refusal.model, refusal.outcome) == ("digits", "internal")
    assert "no luck" not in refusal.text, "it is for the log alone"
    labels = {"protocol": "http", "model": "digits", "version": "", "arm": "", "outcome": "internal"}
    assert metrics.registry.get_sample_value("sluice_requests_total", labels) == 1


def test_a_stage_begins_where_the_one_before_ended_and_of_several_at_once_the_longest_counts() -> None:
    now = 100.0
    journal = Journal(new_metrics(), AccessLog(0.0), clock=lambda: now)
    context = RequestContext("id", "http", deadline=200.0, started=100.0)
    now = 100.5
    journal.admitted(context)
    for now in (102.0, 105.0):  # noqa: B007 - the clock reads it
        journal.has_read(context)
    for duration_s in (1.0, 3.0, 2.0):
        journal.stage(context, "decode", duration_s)
    assert context.stages_s == {"admission": 0.5, "read": 1.5, "decode": 3.0}


def test_the_latest_refusals_are_kept_with_what_a_person_can_take_in_of_each() -> None:
    metrics = new_metrics()
    journal = Journal(metrics, AccessLog(0.0), clock=lambda: 100.0, wall=lambda: 1e9)
    for number in range(31):
        journal.refused_early("http", f"job-{number}", InvalidInput("a" * 1000))
    assert [each.request_id for each in journal.refusals] == [f"job-{number}" for number in range(1, 31)]
    latest = journal.refusals[-1]
    assert (latest.at, latest.protocol, latest.model, latest.outcome) == (1e9, "http", "", "invalid-input")
    assert latest.text == "a" * 200 + "…"
    labels = {"protocol": "http", "model": "", "version": ""}
    for series, value in (("count", 31.0), ("sum", 0.0)):
        assert metrics.registry.get_sample_value(f"sluice_request_duration_seconds_{series}", labels) == value


class KeptCalls:
    """In the place of what makes spans: keeps what it is told of calls."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def batch(self, *call: Any) -> None:
        self.told.append(call)


def test_a_call_for_several_is_a_span_in_the_first_recorded_ones_trace() -> None:
    spans = KeptCalls()
    journal = Journal(new_metrics(), AccessLog(0.0), cast("Spans", spans), wall=lambda: 1000.0)
    unrecorded, first, second = (
        RequestContext(
            name, "http", deadline=200.0, trace=Trace(name, f"span of {name}", sampled=name != "a")
        )
        for name in "abc"
    )
    contexts = [unrecorded, first, second]
    trace = journal.calling(contexts)
    assert trace is not None
    assert (trace.trace_id, trace.parent_id) == ("b", "span of b")
    journal.called("digits", 3, contexts, 1.5, trace)
    assert spans.told == [(trace, [first, second], ("digits", 3, 3), 998.5, 1000.0)]
    assert [each.stages_s for each in contexts] == [{"backend": 1.5}] * 3
    assert journal.calling([unrecorded]) is None

"""How a request that was given up is written down."""

from __future__ import annotations

import asyncio

import pytest

from serving.journal import Journal
from serving.main import new_metrics
from serving.prediction import RequestContext
from serving.telemetry.logs import AccessLog


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

"""Room for requests and for the bytes of their bodies: who gets it, and when it is returned."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
from limits import parse
from prometheus_client import CollectorRegistry

from serving.access.callers import Callers
from serving.access.keys import Caller, Scope
from serving.admission import Admission
from serving.concurrency import ConcurrencyLimit
from serving.errors import Overloaded, RateLimited, TooLarge
from serving.telemetry.metrics import Metrics

CLASSIFY: frozenset[Scope] = frozenset(("classify",))


class Known(Callers):
    """Callers whose credentials are their names; tests may change what each is allowed to do."""

    def __init__(self, *callers: Caller) -> None:
        super().__init__()
        self.by_name = {caller.name: caller for caller in callers}

    @property
    def open(self) -> bool:
        return False

    def identify(self, credential: str | None) -> Caller:
        return self.by_name[credential or ""]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def room(*callers: Caller, clock: Clock | None = None, **options: Any) -> Admission:
    sizes = {"max_in_flight": 80, "max_in_flight_bytes": 800} | options
    return Admission(
        metrics=Metrics(CollectorRegistry()),
        callers=Known(*callers) if callers else None,
        clock=clock or Clock(),
        **sizes,
    )


def test_one_request_may_hold_all_there_is_and_no_more_piece_by_piece() -> None:
    admission = room()
    with admission.admit() as ticket:
        ticket.hold(500)
        with pytest.raises(TooLarge, match="the request has over 800 bytes"):
            ticket.hold(301)
        ticket.hold(300)
        assert admission.held_bytes == ticket.held_bytes == 800
    assert (admission.held_bytes, admission.in_flight) == (0, 0)


def test_a_piece_that_found_no_room_is_not_given_back() -> None:
    admission = room()
    with admission.admit() as one:
        one.hold(500)
        with admission.admit() as other:
            other.hold(200)
            with pytest.raises(Overloaded, match="700 bytes of requests are held"):
                other.hold(200)
        assert admission.held_bytes == 500


@pytest.mark.parametrize("told_apart", [True, False], ids=["callers", "models"])
def test_an_eighth_is_kept_for_those_who_hold_less_than_an_equal_share(told_apart: bool) -> None:
    """Shares are of callers if these are told apart, and otherwise of models if there are several."""
    callers = (Caller("flood", CLASSIFY), Caller("calm", CLASSIFY)) if told_apart else ()
    admission = room(*callers, models=lambda: 1 if told_apart else 2)

    def ticket(whose: str) -> Any:
        return admission.admit(whose, model=None if told_apart else whose)

    with ExitStack() as stack:
        stack.enter_context(ticket("flood")).hold(600)
        for _ in range(69):
            stack.enter_context(ticket("flood"))
        with pytest.raises(Overloaded, match="70 requests are in flight"):
            ticket("flood")
        with ticket("calm") as calm:
            calm.hold(150)
            with pytest.raises(TooLarge, match="over 700 bytes"):
                calm.hold(600)
    assert (admission.held_bytes, admission.in_flight) == (0, 0)


def test_where_nobody_is_told_apart_one_model_may_have_all_room() -> None:
    admission = room(models=lambda: 1)
    with ExitStack() as stack:
        for _ in range(80):
            stack.enter_context(admission.admit(model="digits"))
        with pytest.raises(Overloaded):
            admission.admit(model="digits")


def test_what_is_refused_for_want_of_room_does_not_use_up_a_callers_rate() -> None:
    admission = room(Caller("a", CLASSIFY, rate=parse("1/minute")), max_in_flight=1)
    admission.callers.by_name["b"] = Caller("b", CLASSIFY)  # type: ignore[attr-defined]
    with admission.admit("b"), pytest.raises(Overloaded):
        admission.admit("a")
    with admission.admit("a"):
        pass
    with pytest.raises(RateLimited, match="a is over its rate of 1 per 1 minute"):
        admission.admit("a")


def test_a_rate_that_is_changed_counts_anew_and_nobody_is_told_to_come_back_at_once() -> None:
    clock = Clock()
    admission = room(Caller("a", CLASSIFY, rate=parse("100/second")), clock=clock)
    for _ in range(100):
        admission.admit("a").__exit__(None, None, None)
    clock.now += 1.0  # the previous window still counts in full, and less every hundredth of a second
    with pytest.raises(RateLimited) as refused:
        admission.admit("a")
    assert refused.value.retry_after_s is not None
    assert refused.value.retry_after_s >= 0.1
    admission.callers.by_name["a"] = Caller("a", CLASSIFY, rate=parse("2/hour"))  # type: ignore[attr-defined]
    for _ in range(2):
        admission.admit("a").__exit__(None, None, None)
    with pytest.raises(RateLimited):
        admission.admit("a")


def test_a_caller_has_no_more_in_flight_than_it_may() -> None:
    admission = room(Caller("a", CLASSIFY, max_concurrent=2))
    with admission.admit("a"), admission.admit("a"), pytest.raises(RateLimited, match="2 requests in flight"):
        admission.admit("a")
    with admission.admit("a"):
        pass


def test_a_model_with_all_in_progress_that_gets_done_in_time_refuses_before_a_body_is_read() -> None:
    admission = room(
        Caller("a", CLASSIFY, rate=parse("1/hour")),
        limit=lambda: ConcurrencyLimit(1.0, floor=lambda: 1, ceiling=2),
    )
    with admission.progress("a", "digits"):
        with pytest.raises(Overloaded, match='1 requests for model "digits" are in progress'):
            admission.admit("a", model="digits")
        with pytest.raises(Overloaded), admission.progress("a", "digits"):
            raise AssertionError("there is no room for it")
        assert admission.in_progress == 1
        admission.admit("a", model="other").__exit__(None, None, None)
    assert admission.in_progress == 0

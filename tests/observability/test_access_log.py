"""Which requests get a line in the log, and what it says."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import structlog

from serving.errors import Overloaded
from serving.prediction import RequestContext
from serving.routing import Route
from serving.telemetry.logs import MAX_FAILURES_PER_S, AccessLog
from serving.telemetry.tracing import child_of


def logged(log: AccessLog, failures: int, answers: int) -> list[Any]:
    context = RequestContext("id-1", "http", 0.0, credential="sluice_secret", trace=child_of("", 1.0))
    context.stages_s["decode"] = 0.002
    context.route = Route(2, "candidate", None)
    with structlog.testing.capture_logs() as lines:
        for _ in range(failures):
            log.ended(context, "digits", "1", Overloaded("full", stage="admission"), 0.1)
        for _ in range(answers):
            log.ended(context, "digits", "1", None, 0.1)
    return lines


def test_the_log_takes_a_share_of_answers_and_bounds_failures() -> None:
    now = 100.0
    log = AccessLog(0.1, clock=lambda: now, rng=random.Random(1))
    lines = logged(log, failures=50, answers=1000)
    failed = [line for line in lines if line["outcome"] == "overloaded"]
    assert len(failed) == MAX_FAILURES_PER_S
    assert {(line["stage"], line["arm"], "suppressed" in line) for line in failed} == {
        ("admission", "candidate", False)
    }
    assert 70 <= len(lines) - len(failed) <= 130
    now = 101.0
    (later,) = logged(log, failures=1, answers=0)
    assert later["suppressed"] == 50 - MAX_FAILURES_PER_S
    (last,) = logged(log, failures=1, answers=0)
    assert "suppressed" not in last
    assert later["decode_s"] == 0.002
    assert re.fullmatch(r"[0-9a-f]{32}", later["trace_id"])
    assert "sluice_secret" not in json.dumps(lines)


def test_no_answer_is_logged_where_none_is_wanted() -> None:
    assert logged(AccessLog(0.0), failures=0, answers=100) == []
    assert len(logged(AccessLog(1.0), failures=0, answers=100)) == 100

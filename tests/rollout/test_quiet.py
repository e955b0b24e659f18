"""Quiet hours: in which no version is given more traffic."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from serving.rollout.plan import Plan
from serving.rollout.quiet import is_quiet


@pytest.mark.parametrize(
    ("at", "quiet"),
    [
        ("2026-11-20T21:59", False),  # a Friday, in Berlin an hour later
        ("2026-11-20T22:00", True),
        ("2026-11-20T22:30", True),
        ("2026-11-21T04:59", True),  # the morning after still is Friday's night
        ("2026-11-21T05:00", False),
        ("2026-11-21T22:30", False),  # Saturday's night is not named
    ],
)
def test_quiet_hours_over_midnight(at: str, quiet: bool) -> None:
    hours = {"days": ["fri"], "start": "23:00", "end": "06:00", "timezone": "Europe/Berlin"}
    plan = Plan.model_validate({"quiet_hours": [hours]})
    assert is_quiet(plan, datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp()) == quiet


def test_quiet_hours_of_a_day_end_before_their_end() -> None:
    plan = Plan.model_validate({"quiet_hours": [{"days": ["fri"], "start": "09:00", "end": "17:00"}]})
    times = (
        "2026-11-20T08:59",
        "2026-11-20T09:00",
        "2026-11-20T16:59",
        "2026-11-20T17:00",
        "2026-11-21T12:00",
    )
    found = [is_quiet(plan, datetime.fromisoformat(f"{each}+00:00").timestamp()) for each in times]
    assert found == [False, True, True, False, False]


def test_the_same_start_and_end_are_a_whole_day() -> None:
    hours = {"days": ["sat"], "start": "00:00", "end": "00:00"}
    plan = Plan.model_validate({"quiet_hours": [hours]})
    times = ("2026-11-20T23:59", "2026-11-21T00:00", "2026-11-21T23:59", "2026-11-22T00:00")
    found = [is_quiet(plan, datetime.fromisoformat(f"{each}+00:00").timestamp()) for each in times]
    assert found == [False, True, True, False]

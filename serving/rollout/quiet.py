"""Quiet hours: times at which nothing grows. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta

from serving.rollout.plan import Plan, QuietHours, zone

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def is_quiet(plan: Plan, at: float) -> bool:
    """Whether a moment, in Unix seconds, lies in the plan's quiet hours."""
    return any(_within(hours, at) for hours in plan.quiet_hours)


def _within(hours: QuietHours, at: float) -> bool:
    local = datetime.fromtimestamp(at, UTC).astimezone(zone(hours.timezone))
    start, end = time.fromisoformat(hours.start), time.fromisoformat(hours.end)
    now = local.time()
    if start < end:
        return start <= now < end and _DAYS[local.weekday()] in hours.days
    # Over midnight, or a whole day: the morning belongs to the day on which the night began.
    began = local if now >= start else local - timedelta(days=1)
    return (now >= start or now < end) and _DAYS[began.weekday()] in hours.days

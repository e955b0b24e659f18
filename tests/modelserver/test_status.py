"""Errors as the original prints them, and those of others made into such."""

from __future__ import annotations

from serving.modelserver.status import Code, StatusError, from_exception


def test_errors_become_statuses() -> None:
    known = StatusError(Code.NOT_FOUND, "x")
    assert from_exception(known) is known
    assert from_exception(ZeroDivisionError("y")).code is Code.INTERNAL
    assert str(known) == "NOT_FOUND: x"

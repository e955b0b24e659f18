"""Errors as the original prints them, and those of others made into such."""

from __future__ import annotations

import grpc
import pytest

from serving.modelserver.status import Code, StatusError, from_exception


def test_errors_become_statuses() -> None:
    known = StatusError(Code.NOT_FOUND, "x")
    assert from_exception(known) is known
    assert from_exception(ZeroDivisionError("y")).code is Code.INTERNAL
    assert str(known) == "NOT_FOUND: x"


def test_the_codes_are_grpcs() -> None:
    assert {code.name: code.value for code in Code} == {code.name: code.value[0] for code in grpc.StatusCode}


class OpError(Exception):
    """An error as TensorFlow's are."""

    def __init__(self, error_code: int, message: str) -> None:
        super().__init__("what TensorFlow prints")
        self.error_code, self.message = error_code, message


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OpError(5, "gone"), "NOT_FOUND: gone"),
        (OpError(99, "gone"), "INTERNAL: OpError: gone"),
        (ZeroDivisionError("y"), "INTERNAL: ZeroDivisionError: y"),
    ],
)
def test_an_error_of_others_keeps_its_code_and_text(error: Exception, told: str) -> None:
    assert str(from_exception(error)) == told

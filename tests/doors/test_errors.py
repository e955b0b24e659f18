"""Every kind of error is mapped once in each protocol; every status from upstream becomes a kind."""

from __future__ import annotations

import json

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from serving import errors
from serving.backends.tfserving import KIND_OF_STATUS
from serving.client.wire import as_error
from serving.errors import for_a_header
from serving.rest.errors import STATUS_OF_KIND, TITLE_OF_KIND, plain_error, problem
from serving.rpc.errors import CODE_OF_KIND, rich_status

KINDS = errors.all_kinds()


def test_every_map_is_total() -> None:
    assert len(KINDS) > 10
    for table in (STATUS_OF_KIND, TITLE_OF_KIND, CODE_OF_KIND):
        assert set(table) == set(KINDS)
    assert len({kind.kind for kind in KINDS}) == len(KINDS)
    assert set(KIND_OF_STATUS) == set(grpc.StatusCode) - {grpc.StatusCode.OK}
    assert set(KIND_OF_STATUS.values()) <= set(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_a_kind_goes_through_both_protocols_and_comes_back(kind: type[errors.SluiceError]) -> None:
    error = kind("what and what instead", stage="admission", retry_after_s=1.5)
    answer = problem(error, "r1")
    body = json.loads(bytes(answer.body))
    assert body["status"] == answer.status_code == STATUS_OF_KIND[kind]
    assert 400 <= answer.status_code < 600
    assert answer.headers["retry-after"] == "2"
    assert (body["type"], body["stage"]) == (f"urn:sluice:problem:{kind.kind}", "admission")
    assert json.loads(bytes(plain_error(error, "r1").body)) == {"error": "what and what instead"}
    status = rich_status(error, (("x", "y"),))
    assert status.code is CODE_OF_KIND[kind]
    trailing = dict(status.trailing_metadata)
    assert trailing["x"] == "y"
    details = status_pb2.Status.FromString(trailing["grpc-status-details-bin"]).details
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert details[0].Unpack(info)
    assert details[1].Unpack(retry)
    assert (info.reason, info.metadata["stage"]) == (kind.kind, "admission")
    assert retry.retry_delay.ToNanoseconds() == 1_500_000_000
    assert type(as_error(kind.kind, "x")) is kind


def test_texts_that_quote_a_caller_stay_short_and_valid() -> None:
    error = errors.NotFound("\ud800" + "x" * 100_000)
    assert len(bytes(problem(error, "r").body)) < 5000
    assert for_a_header("a" * 1024) == "a" * 1024
    assert for_a_header("a" * 1025) == "a" * 1024 + "...TRUNCATED"
    assert for_a_header("€" * 342) == "€" * 341 + "...TRUNCATED"  # of three bytes each
    assert for_a_header("\ud800") == "?"


def test_a_text_is_cut_where_it_is_too_long_and_says_so() -> None:
    assert errors.shortened("x" * 10, 10) == "x" * 10
    assert errors.shortened("x" * 11, 10) == "x" * 10 + "…"
    assert errors.shortened("\ud800", 10) == "?"


def test_only_what_may_be_otherwise_later_is_worth_another_try() -> None:
    assert {kind.kind for kind in KINDS if kind.retryable} == {"overloaded", "rate-limited", "unavailable"}
    no_memory = errors.out_of_memory("decode")
    assert (no_memory.kind, no_memory.stage, no_memory.retry_after_s) == ("overloaded", "decode", 1.0)


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    """An error with the frames that it passed."""
    try:
        raise error from cause
    except type(error):
        return error


def test_nothing_is_held_through_an_error_nor_through_those_behind_it() -> None:
    cause = raised(ValueError("cause"), raised(OSError("the cause's own")))
    error, context = raised(errors.Internal("it"), cause), raised(KeyError("context"))
    error.__context__ = context
    behind = [error, cause, cause.__cause__, context]
    assert all(each is not None and each.__traceback__ is not None for each in behind)
    assert errors.without_frames(error) is error
    assert [each.__traceback__ for each in behind if each is not None] == [None] * 4


def test_what_went_wrong_is_found_in_groups_of_groups() -> None:
    error = ValueError("it")
    assert errors.innermost(ExceptionGroup("a", [ExceptionGroup("b", [error]), OSError()])) is error
    assert errors.innermost(error) is error

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

"""Every kind of error is mapped once in each protocol, and none is left out."""

from __future__ import annotations

import grpc
import pytest

from serving import errors
from serving.rest.errors import STATUS_OF_KIND, TITLE_OF_KIND, problem
from serving.rpc.errors import CODE_OF_KIND, rich_status

KINDS = errors.all_kinds()


def test_kinds_are_named_apart() -> None:
    assert len(KINDS) > 10
    names = [kind.kind for kind in KINDS]
    assert len(set(names)) == len(names)


def test_every_kind_is_mapped_in_every_protocol() -> None:
    assert set(STATUS_OF_KIND) == set(TITLE_OF_KIND) == set(CODE_OF_KIND) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=[kind.kind for kind in KINDS])
def test_every_kind_becomes_an_answer(kind: type[errors.SluiceError]) -> None:
    error = kind("what failed", stage="decode", retry_after_s=1.2)
    answer = problem(error, "id-1")
    assert 400 <= answer.status_code < 600
    assert answer.headers["retry-after"] == "2"
    assert error.kind.encode() in bytes(answer.body)
    status = rich_status(error)
    assert status.code != grpc.StatusCode.OK
    assert status.details == "what failed"

"""Headers that come in several lines: of lists every line counts (RFC 9110, 5.3)."""

from __future__ import annotations

import gzip

import httpx
import pytest

from tests.doors.wire import PATH, PNG
from tests.support.http import grey_png

NDJSON = "application/x-ndjson"


async def test_every_line_of_accept_counts(client: httpx.AsyncClient) -> None:
    accepts = [("content-type", "image/png"), ("accept", "application/json"), ("accept", NDJSON)]
    answer = await client.post(PATH, content=grey_png(200), headers=accepts)
    assert answer.headers["content-type"] == NDJSON
    openmetrics = [("accept", "text/html"), ("accept", "application/openmetrics-text")]
    metrics = await client.get("/metrics", headers=openmetrics)
    assert metrics.headers["content-type"].startswith("application/openmetrics-text")


async def test_a_body_that_is_compressed_twice_is_told_as_that(client: httpx.AsyncClient) -> None:
    twice = [*PNG.items(), ("content-encoding", "gzip"), ("content-encoding", "gzip")]
    answer = await client.post(PATH, content=gzip.compress(gzip.compress(grey_png(1))), headers=twice)
    assert answer.status_code == 415
    assert 'the content encoding is "gzip, gzip"' in answer.json()["detail"]


@pytest.mark.parametrize("tag", ["{}", "W/{}", '"a", {}', '"a",W/{}', "*"])
async def test_a_browser_that_has_a_file_is_told_so(client: httpx.AsyncClient, tag: str) -> None:
    etag = (await client.get("/")).headers["etag"]
    known = await client.get("/", headers={"if-none-match": tag.format(etag)})
    assert (known.status_code, known.content) == (304, b"")
    several = [("if-none-match", '"b"'), ("if-none-match", tag.format(etag))]
    assert (await client.get("/", headers=several)).status_code == 304
    assert (await client.get("/", headers={"if-none-match": '"b", W/"c"'})).status_code == 200

"""What pages of other origins may read."""

from __future__ import annotations

import httpx
import pytest

from serving.errors import InvalidInput
from serving.settings import load
from tests.doors.replica import ScriptedReplica
from tests.support.gateways import gateway_over
from tests.support.http import grey_png

APP = "https://app.example"
PATH = "/v1/models/digits:classify"
PREFLIGHT = {
    "origin": APP,
    "access-control-request-method": "POST",
    "access-control-request-headers": "content-type,x-api-key",
}


async def classified(client: httpx.AsyncClient, origin: str) -> httpx.Response:
    headers = {"content-type": "image/png", "origin": origin}
    answer = await client.post(PATH, content=grey_png(200), headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


async def test_pages_read_answers_only_where_their_origin_is_listed(replica: ScriptedReplica) -> None:
    async with gateway_over(replica) as (_, client):
        assert (await client.options(PATH, headers=PREFLIGHT)).status_code == 405
        assert "access-control-allow-origin" not in (await classified(client, APP)).headers
    async with gateway_over(replica, cors_origins=(APP,)) as (_, client):
        asked = await client.options(PATH, headers=PREFLIGHT)
        assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, APP)
        assert "x-api-key" in asked.headers["access-control-allow-headers"]
        answer = await classified(client, APP)
        assert answer.headers["access-control-allow-origin"] == APP
        shown = answer.headers["access-control-expose-headers"]
        assert {"retry-after", "inference-header-content-length"} <= set(shown.split(", "))
        assert (
            "access-control-allow-origin" not in (await classified(client, "https://other.example")).headers
        )
        refused = await client.post(PATH, content=b"x", headers={"content-type": "x/y", "origin": APP})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (415, APP)


@pytest.mark.parametrize(
    "origin", ["app.example", "https://app.example/", "https://App.example", "https://*.example"]
)
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(InvalidInput, match="is not an origin as browsers send it"):
        load(cors_origins=origin)

"""What the page is told: the latest refusals, and rollouts as far as they can be read."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from serving.errors import InvalidInput, Unavailable
from tests.support.fake_replica import FakeReplica, running
from tests.support.gateways import gateway_over

PNG = {"content-type": "image/png"}


async def test_the_page_shows_the_latest_refusals_newest_first() -> None:
    async with running(FakeReplica()) as replica, gateway_over(replica) as (_, client):
        for name in ("a", "b"):
            await client.post(f"/v1/models/{name}:classify", content=b"x", headers=PNG)
        state: dict[str, Any] = (await client.get("/page/state")).json()
        first, second = state["refusals"]
        assert (first["outcome"], first["model"]) == ("not-found", "")
        assert first["at"] >= second["at"]
        assert '"b"' in first["text"]
        (model,) = state["models"]
        assert model["serving"] == 1
        assert model["input"]["channels"] in (1, 3)


async def test_the_page_stands_whatever_text_a_refusal_has() -> None:
    """JSON may name half of a surrogate pair, and an error quote it: no UTF-8 carries that."""
    async with running(FakeReplica()) as replica, gateway_over(replica) as (up, client):
        up.gateway.journal.refused_early("http", "id", InvalidInput('there is no signature "\ud800"'))
        (refusal,) = (await client.get("/page/state")).json()["refusals"]
        assert refusal["text"] == 'there is no signature "?"'
        up.gateway.journal.refused_early("http", "id", InvalidInput("x" * 1000))
        assert (await client.get("/page/state")).json()["refusals"][0]["text"] == "x" * 200 + "…"


class ClosedDesk:
    """The desk of a gateway whose rollouts cannot be read."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def newest(self) -> list[Any]:
        raise self._error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Unavailable("the API server is away"), "the API server is away"),
        (OSError(5, "I/O error", "/a"), "I/O error"),
    ],
)
async def test_the_page_stands_while_rollouts_cannot_be_read(error: Exception, told: str) -> None:
    async with running(FakeReplica()) as replica, gateway_over(replica) as (up, client):
        assert (await client.get("/page/state")).json()["rollouts_gap"] is None
        up.gateway.desk = ClosedDesk(error)  # type: ignore[assignment]  # it is asked for nothing else
        state = (await client.get("/page/state")).json()
        assert (state["rollouts"], state["rollouts_gap"]) == ([], told)
        assert [each["name"] for each in state["models"]] == ["digits"]


async def test_an_address_that_is_no_page_is_a_problem_document() -> None:
    async with running(FakeReplica()) as replica, gateway_over(replica) as (_, client):
        assert (await client.get("/")).headers["content-type"].startswith("text/html")
        missing: httpx.Response = await client.get("/page/none.js")
        assert missing.status_code == 404
        assert missing.json()["type"] == "urn:sluice:problem:not-found"

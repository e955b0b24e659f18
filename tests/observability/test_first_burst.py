"""What alerts take a rate of begins at zero: `rate` and `increase` see nothing of a series' first value."""

from __future__ import annotations

import asyncio
import contextlib
import re
from functools import cache
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse
from promql_parser import MatchOp

from k8s.tools import manifests, metric_names
from k8s.tools.check import K8S
from serving import protos
from serving.commands.serve import SAMPLE
from serving.routing import Split
from tests.support.fake_replica import FakeReplica, Refusal, running
from tests.support.gateways import gateway_over

PICTURE = SAMPLE.read_bytes()
PATHS = ("/v1/models/digits:classify", "/v1/models/digits/versions/1:classify", "/v1/classify")

Series = tuple[str, frozenset[tuple[str, str]]]


async def scraped(client: httpx.AsyncClient) -> dict[Series, float]:
    """The page's samples, by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse((await client.get("/metrics")).text)
        for sample in family.samples
    }


@cache
def selectors_of_alerts() -> list[Any]:
    """What alerts, and what is recorded for them, ask for of counters and histograms."""
    rules = manifests.build(K8S / "components/monitoring")
    asked = [
        selector
        for where, expression in metric_names.expressions(rules)
        if where.startswith("PrometheusRule/")
        for selector in metric_names.selectors(expression)
    ]
    kinds = {name: each.kind for name, each in metric_names.exported().items()}
    return [each for each in asked if kinds.get(each.name) in ("counter", "histogram")]


def is_asked_for(series: Series) -> bool:
    name, labels = series[0], dict(series[1])
    return any(
        selector.name == name
        and all(_matches(each, labels.get(each.name, "")) for each in selector.matchers.matchers)
        for selector in selectors_of_alerts()
    )


def _matches(matcher: Any, value: str) -> bool:
    if matcher.op in (MatchOp.Equal, MatchOp.NotEqual):
        found = bool(matcher.value == value)
    else:
        found = re.fullmatch(matcher.value, value) is not None
    return found if matcher.op in (MatchOp.Equal, MatchOp.Re) else not found


async def ask(client: httpx.AsyncClient, channel: grpc.aio.Channel, timeout_s: float) -> None:
    """One picture on every path that there is for one, by HTTP and by gRPC, whatever becomes of it."""
    request, response = protos.methods(protos.IMAGE_CLASSIFICATION)["Classify"]
    classify: Any = channel.unary_unary(
        f"/{protos.IMAGE_CLASSIFICATION}/Classify", request.SerializeToString, response.FromString
    )
    headers = {"content-type": "image/png", "x-request-timeout": str(timeout_s)}
    for path in PATHS:
        await client.post(path, content=PICTURE, headers=headers)
    for fields in ({"model": "digits"}, {"model": "digits", "version": 1}):
        with contextlib.suppress(grpc.aio.AioRpcError):
            await classify(protos.ClassifyRequest(images=[PICTURE], **fields), timeout=timeout_s)


@pytest.mark.parametrize("split", [None, Split(1, 2, 0.5, 0.0, "salt")], ids=["plain", "rollout"])
async def test_the_first_burst_is_seen_of_whatever_failed(split: Split | None) -> None:
    replica = FakeReplica(versions={"digits": {1, 2}})

    def fail_with(code: grpc.StatusCode | None) -> None:
        async def fail(_request: Any) -> None:
            if code is None:
                await asyncio.Event().wait()
            else:
                raise Refusal(code)

        replica.before_predict = fail

    async with (
        running(replica),
        gateway_over(replica, max_in_flight=1) as (up, client),
        grpc.aio.insecure_channel(up.grpc_address) as channel,
    ):
        if split is not None:
            up.gateway.steering.set_split("digits", split, None)
        before = await scraped(client)
        for _ in range(8):  # of callers on either arm
            await ask(client, channel, 10.0)
        fail_with(grpc.StatusCode.INTERNAL)
        for _ in range(8):
            await ask(client, channel, 10.0)
        fail_with(None)
        await ask(client, channel, 0.1)
        with up.gateway.admission.admit(None, "classify"):
            await ask(client, channel, 10.0)
        replica.versions["digits"] = set()
        await up.catalog.refreshed()
        await ask(client, channel, 10.0)
        after = await scraped(client)
    grown = {series for series in after if is_asked_for(series) and after[series] > before.get(series, 0)}
    outcomes, arms = ({dict(labels).get(name) for _, labels in grown} for name in ("outcome", "arm"))
    assert outcomes >= {"ok", "internal", "deadline-exceeded", "overloaded", "unavailable"}
    assert arms >= ({""} if split is None else {"", "stable", "candidate"})
    assert sorted((name, sorted(labels)) for name, labels in grown - before.keys()) == []


async def test_the_first_refusal_is_seen_of_who_names_no_model_where_there_are_several() -> None:
    names = ("digits", "other")
    async with (
        running(FakeReplica(versions={name: {1} for name in names})) as replica,
        gateway_over(replica, models=names, max_in_flight=1) as (up, client),
    ):
        before = await scraped(client)
        with up.gateway.admission.admit(None, "classify"):
            answer = await client.post("/v1/classify", content=PICTURE, headers={"content-type": "image/png"})
        assert answer.status_code == 503
        after = await scraped(client)
    grown = {series for series in after if is_asked_for(series) and after[series] > before.get(series, 0)}
    assert {dict(labels).get("model") for _, labels in grown} >= {""}
    assert sorted((name, sorted(labels)) for name, labels in grown - before.keys()) == []

"""Two gateways in front of one replica: what a real Prometheus adds up is what clients have sent to both."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest

from serving import protos
from serving.commands.serve import SAMPLE
from tests.observability.scene import have_prometheus, query, start_prometheus, until
from tests.support.fake_replica import FakeReplica, running
from tests.support.processes import LiveProcess, started_gateway

pytestmark = pytest.mark.skipif(not have_prometheus(), reason="prometheus is not installed: make test-deps")

PNG = {"content-type": "image/png"}
PATH = "/v1/models/digits:classify"
ROUNDS = 100
OUTCOMES = {grpc.StatusCode.INVALID_ARGUMENT: "invalid-input"}


async def load(gateway: LiveProcess, seed: int) -> Counter[tuple[str, str]]:
    """Requests of many kinds to one gateway; how many ended how, as their client counted them."""
    sent: Counter[tuple[str, str]] = Counter()
    request, response = protos.methods(protos.IMAGE_CLASSIFICATION)["Classify"]
    image = SAMPLE.read_bytes()
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        ("ok", PATH, {"content": image, "headers": PNG}),
        ("bad-image", PATH, {"content": b"nonsense", "headers": PNG}),
        ("not-found", "/v1/models/none:classify", {"content": image, "headers": PNG}),
        ("unsupported-media", PATH, {"content": b"x", "headers": {"content-type": "text/plain"}}),
        ("deadline-exceeded", PATH, {"content": image, "headers": PNG | {"x-request-timeout": "0.000001"}}),
    ]
    async with (
        httpx.AsyncClient(base_url=gateway.http_url, timeout=60) as http,
        grpc.aio.insecure_channel(gateway.grpc_address) as channel,
    ):
        classify: Any = channel.unary_unary(
            f"/{protos.IMAGE_CLASSIFICATION}/Classify", request.SerializeToString, response.FromString
        )
        for index in range(ROUNDS):
            outcome, path, arguments = kinds[(index * seed) % len(kinds)]
            answer = await http.post(path, **arguments)
            assert answer.is_success == (outcome == "ok"), answer.text
            sent["http", outcome] += 1
            images = [image] if index % 3 else []
            try:
                await classify(protos.ClassifyRequest(model="digits", images=images))
                sent["grpc", "ok"] += 1
            except grpc.aio.AioRpcError as error:
                sent["grpc", OUTCOMES[error.code()]] += 1
    return sent


def numbers(url: str, expression: str) -> list[float]:
    """The values of an expression's series."""
    return [float(each["value"][1]) for each in query(url, expression)]


async def test_the_sum_over_gateways_is_what_clients_have_sent(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        replica = await stack.enter_async_context(running(FakeReplica()))
        gateways = [
            await stack.enter_async_context(started_gateway(replica.address, "digits")) for _ in range(2)
        ]
        targets = [each.http_url.removeprefix("http://") for each in gateways]
        with ExitStack() as ends:
            url = await asyncio.to_thread(
                start_prometheus, ends, tmp_path, {"gateway": (targets, "/metrics")}
            )
            sent: Counter[tuple[str, str]] = Counter()
            for counted in await asyncio.gather(load(gateways[0], 3), load(gateways[1], 2)):
                sent += counted
            assert sum(sent.values()) == 2 * 2 * ROUNDS
            total = sum(sent.values())
            await asyncio.to_thread(
                until,
                lambda: numbers(url, "sum(sluice_requests_total)") == [total],
                "Prometheus has seen the load",
            )
            by_outcome = query(url, "sum by (protocol, outcome) (sluice_requests_total)")
            assert sent == {
                (each["metric"]["protocol"], each["metric"]["outcome"]): float(each["value"][1])
                for each in by_outcome
                if each["value"][1] != "0"
            }
            assert numbers(url, "sum by (instance) (sluice_requests_total)") == [2 * ROUNDS] * 2
            assert numbers(url, "sum(sluice_request_duration_seconds_count)") == [total]

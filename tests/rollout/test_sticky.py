"""Callers stay where they are: by the header that the settings name, in both protocols, at every gateway."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from serving import protos, settings
from serving.errors import InvalidInput
from serving.rollout.machine import Phase
from serving.routing import Split, choose
from tests.rollout.replicas import FAST, PICTURES, Scene, VersionedReplica, scene_over
from tests.support.fake_replica import FakeReplica, running
from tests.support.gateways import gateway_over

HELD = FAST | {"canary": [{"weight": 0.5, "min_time_s": 1000}]}
KEYS = [f"user-{number}" for number in range(24)]
CLASSIFY = "/v1/models/digits:classify"


async def over_http(scene: Scene, headers: dict[str, str], path: str = CLASSIFY) -> int:
    """The version that answers a request with these headers."""
    png = {"content-type": "image/png"}
    answer = await scene.client.post(path, content=PICTURES[1], headers=headers | png)
    return int(answer.json()["version"])


async def over_grpc(channel: grpc.aio.Channel, metadata: dict[str, str], **fields: Any) -> int:
    request, response = protos.methods(protos.IMAGE_CLASSIFICATION)["Classify"]
    stub: Any = channel.unary_unary(
        f"/{protos.IMAGE_CLASSIFICATION}/Classify",
        request_serializer=request.SerializeToString,
        response_deserializer=response.FromString,
    )
    message = request(model="digits", images=[PICTURES[1]], **fields)
    return int((await stub(message, metadata=tuple(metadata.items()), timeout=20)).version)


async def test_three_gateways_route_a_key_alike_in_both_protocols(tmp_path: Path) -> None:
    named: dict[str, Any] = {"routing_header": "X-User-Id", "callers": 1}
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(scene_over(tmp_path, VersionedReplica(), **named))
        others = [
            await stack.enter_async_context(scene_over(tmp_path, over=first.replicas, **named))
            for _ in range(2)
        ]
        first.begin(HELD)
        scenes = [first, *others]
        async with asyncio.timeout(60):
            while any(each.running.gateway.steering.splits()["digits"].weight != 0.5 for each in scenes):
                await asyncio.sleep(0.01)
        split = first.rollout.split()
        expected = [choose(split, key).version for key in KEYS]
        assert set(expected) == {1, 2}
        for scene in scenes:
            headers = [{"x-user-id": key, "x-routing-key": "ignored"} for key in KEYS]
            assert [await over_http(scene, each) for each in headers] == expected
            async with grpc.aio.insecure_channel(scene.running.grpc_address) as channel:
                assert [await over_grpc(channel, each) for each in headers] == expected
                of_candidate = {"x-user-id": KEYS[expected.index(2)]}
                assert await over_grpc(channel, of_candidate, version=1) == 1
            assert await over_http(scene, of_candidate, "/v1/models/digits/versions/1:classify") == 1
        assert first.rollout.state.phase is Phase.CANARY


async def test_requests_without_a_key_are_each_on_their_own_whatever_their_ids() -> None:
    """A prober may send one id for ever, and all messages of a stream have the stream's."""
    replica = FakeReplica(versions={"digits": {1, 2}})
    async with running(replica), gateway_over(replica) as (gateway, client):
        gateway.gateway.steering.set_split("digits", Split(1, 2, 0.5, salt="x"), None)
        png = {"content-type": "image/png", "x-request-id": "probe"}
        answers = [await client.post(CLASSIFY, content=PICTURES[1], headers=png) for _ in range(40)]
        assert {answer.json()["version"] for answer in answers} == {1, 2}
        request, response = protos.methods(protos.IMAGE_CLASSIFICATION)["ClassifyStream"]
        async with grpc.aio.insecure_channel(gateway.grpc_address) as channel:
            stub: Any = channel.stream_stream(
                f"/{protos.IMAGE_CLASSIFICATION}/ClassifyStream",
                request_serializer=request.SerializeToString,
                response_deserializer=response.FromString,
            )
            sent = [request(model="digits", images=[PICTURES[1]]) for _ in range(40)]
            assert {each.version async for each in stub(iter(sent), timeout=20)} == {1, 2}
        keyed = png | {"x-routing-key": "somebody"}
        kept = [await client.post(CLASSIFY, content=PICTURES[1], headers=keyed) for _ in range(10)]
        assert len({answer.json()["version"] for answer in kept}) == 1


def test_a_header_is_named_as_both_protocols_take_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings.load(routing_header="X-User_Id.2").routing_header == "x-user_id.2"
    for bad in ("", "x user", "x-user-bin", "grpc-user", "x:user", "ü"):
        with pytest.raises(InvalidInput, match=r"routing_header: .*cannot be a header of HTTP and of gRPC"):
            settings.load(routing_header=bad)

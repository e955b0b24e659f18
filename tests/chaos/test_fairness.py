"""One key that floods the gateway, and another that asks a little: the other is answered."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from serving.access.keys import new_key
from serving.main import Running
from tests.chaos.flood import Flood, Seen, flood
from tests.chaos.replica_process import busy_for
from tests.support.fake_replica import FakeReplica, running, until
from tests.support.gateways import counted, gateway_over
from tests.support.pictures import encoded, gradient

PATH = "/v1/models/digits:classify"
PICTURE = encoded(gradient(), "PNG")
# Eight images in a tenth of a second: 80 a second, whatever the processor does.
BATCH, BATCH_S = 8, 0.1
CAPACITY_PER_S = BATCH / BATCH_S
SECONDS = 5.0
# Requests in flight of the one who is calm: less than half of what two full batches hold.
FEW = 4


def write_keys(path: Path, *names: str) -> list[str]:
    keys, entries = [], []
    for name in names:
        key, entry = new_key(name, ["classify"])
        keys.append(key)
        entries.append(f'[[keys]]\nid = "{entry.id}"\nname = "{name}"\nhash = "{entry.hash}"\n')
    path.write_text("\n".join(entries))
    return keys


async def test_a_key_that_floods_takes_no_answer_from_another(tmp_path: Path) -> None:
    key_file, body = tmp_path / "keys.toml", tmp_path / "picture.png"
    flooder, calm = write_keys(key_file, "flooder", "calm")
    body.write_bytes(PICTURE)

    async with (
        running(busy_for(BATCH_S, 0.0)) as fake,
        gateway_over(
            fake, keys_file=key_file, max_batch=BATCH, calls_per_replica=1, target_latency_s=0.5
        ) as (up, _),
    ):
        url = up.http_url + PATH
        much = Flood(url, str(body), 10 * CAPACITY_PER_S, SECONDS, 5.0, key=flooder)
        little = Flood(url, str(body), 0, SECONDS - 1.0, 5.0, connections=FEW, key=calm)

        async def ask_once_it_is_full() -> Seen:
            await until(lambda: counted(up, "sluice_requests_refused_total") > 0)
            return await flood(little)

        flooded, answered = await asyncio.gather(flood(much), ask_once_it_is_full())
        admission = up.gateway.admission
        assert (admission.in_flight, admission.in_progress, admission.held_bytes) == (0, 0, 0)
    print(flooded, answered, sep="\n")
    assert answered.sent >= 3 * FEW
    assert answered.statuses.get("200", 0) >= 0.9 * answered.sent, answered
    assert flooded.statuses["200"] >= 0.5 * answered.statuses["200"], "what the other leaves is the flooder's"
    assert flooded.statuses["503"] > flooded.statuses["200"]


async def send_without_end(
    up: Running, open_connections: contextlib.AsyncExitStack, headers: str = "", model: str = "digits"
) -> None:
    """Begin twenty requests, of which half of the body comes."""
    head = f"POST /v1/models/{model}:classify HTTP/1.1\r\nhost: x\r\n{headers}content-type: image/png\r\n"
    head += "content-length: 8000\r\n\r\n"
    port = int(up.http_url.rpartition(":")[2])
    for _ in range(20):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        open_connections.callback(writer.close)
        writer.write(head.encode() + bytes(4000))


@pytest.mark.parametrize("limits", [{"max_in_flight": 16}, {"max_in_flight_bytes": 16 * 4000}])
async def test_a_key_that_sends_without_end_leaves_room_for_another(
    limits: dict[str, Any], tmp_path: Path
) -> None:
    """Requests whose bodies never come to an end hold the room they took."""
    flooder, calm = write_keys(tmp_path / "keys.toml", "flooder", "calm")
    async with (
        running(FakeReplica()) as fake,
        gateway_over(fake, keys_file=tmp_path / "keys.toml", **limits) as (up, client),
        contextlib.AsyncExitStack() as open_connections,
    ):
        await send_without_end(up, open_connections, f"x-api-key: {flooder}\r\n")
        await until(lambda: counted(up, "sluice_requests_refused_total") == 6)
        assert up.gateway.admission.in_flight == 14
        for _ in range(5):
            answer = await client.post(
                PATH, content=PICTURE, headers={"content-type": "image/png", "x-api-key": calm}
            )
            assert answer.status_code == 200, answer.text
        assert up.gateway.admission.in_flight == 14


@pytest.mark.parametrize("limits", [{"max_in_flight": 16}, {"max_in_flight_bytes": 16 * 4000}])
@pytest.mark.parametrize(("models", "held"), [(("digits", "other"), 14), (("digits",), 16)])
async def test_where_nobody_is_told_apart_a_model_that_is_asked_without_end_leaves_room_for_another(
    models: tuple[str, ...], held: int, limits: dict[str, Any]
) -> None:
    async with (
        running(FakeReplica(versions={model: {1} for model in models})) as fake,
        gateway_over(fake, models=models, **limits) as (up, client),
        contextlib.AsyncExitStack() as open_connections,
    ):
        await send_without_end(up, open_connections)
        await until(lambda: counted(up, "sluice_requests_refused_total") == 20 - held)
        assert up.gateway.admission.in_flight == held
        for model in models:
            answer = await client.post(
                f"/v1/models/{model}:classify", content=PICTURE, headers={"content-type": "image/png"}
            )
            assert answer.status_code == (503 if model == "digits" else 200), answer.text
        assert up.gateway.admission.in_flight == held

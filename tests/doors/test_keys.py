"""API keys at every door: who is let in, with which scope, rate and concurrency."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from serving import protos
from serving.access.callers import WATCH_INTERVAL_S, WatchedFile
from serving.commands.app import build
from serving.main import Running
from tests.doors.credentials import bearer, keys_command, post
from tests.doors.replica import ScriptedReplica
from tests.support.gateways import counted, gateway_over
from tests.support.http import grey_png


@asynccontextmanager
async def keyed(
    replica: ScriptedReplica, file: Path, **settings: Any
) -> AsyncIterator[tuple[Running, httpx.AsyncClient]]:
    async with gateway_over(replica, keys_file=file, **settings) as both:
        yield both


async def test_every_door_asks_for_a_key(replica: ScriptedReplica, key_file: Path) -> None:
    key = keys_command("add", "a", f"--file={key_file}")
    async with keyed(replica, key_file) as (running, client):
        answers = [
            await post(client, {}),
            await post(client, bearer("wrong")),
            await client.get("/v1/models"),
            await client.get("/v1/models/digits"),
            await client.get("/v1/models/digits/metadata"),
            await client.post("/v1/models/digits:predict", json={"instances": [1]}),
            await client.get("/v2/models/digits"),
            await client.get("/v2/models/digits/config"),
            await client.post("/v2/models/digits/infer", json={"inputs": []}),
            await client.post("/v2/repository/index"),
        ]
        assert [each.status_code for each in answers] == [401] * len(answers)
        assert {each.headers["www-authenticate"] for each in answers} == {"Bearer"}
        details = {each.json().get("detail", each.json().get("error")) for each in answers}
        assert len(details) == 1
        for path in ("/healthz", "/readyz", "/metrics", "/v2", "/v2/health/live", "/v2/health/ready"):
            assert (await client.get(path)).status_code == 200
        for headers in (bearer(key), {"x-api-key": key}, {"authorization": f"bearer  {key}"}):
            assert (await post(client, headers)).status_code == 200
        assert (await client.get("/v1/models", headers=bearer(key))).status_code == 200
        await assert_rpcs_ask_for_a_key(running, key)
        refused = counted(running, "sluice_requests_refused_total", reason="credentials")
        assert refused >= 9


async def test_a_key_beside_a_proxys_credentials_counts(replica: ScriptedReplica, key_file: Path) -> None:
    """A proxy that asks for a password hands `Authorization: Basic …` on, as nginx does."""
    key = keys_command("add", "a", f"--file={key_file}")
    basic = {"authorization": "Basic dXNlcjpwYXNzd29yZA=="}
    async with keyed(replica, key_file) as (_, client):
        for headers, status in (
            (basic | {"x-api-key": key}, 200),
            (basic | {"x-api-key": "wrong"}, 401),
            (basic, 401),
            (bearer("wrong") | {"x-api-key": key}, 401),
            (bearer(key) | {"x-api-key": "wrong"}, 200),
        ):
            assert (await post(client, headers)).status_code == status, headers
        models = await client.get("/v1/models", headers=basic | {"x-api-key": key})
        assert models.status_code == 200


async def assert_rpcs_ask_for_a_key(running: Running, key: str) -> None:
    async with grpc.aio.insecure_channel(running.grpc_address) as channel:
        for service in (
            protos.IMAGE_CLASSIFICATION,
            protos.PREDICTION_SERVICE,
            protos.MODEL_SERVICE,
            protos.OPEN_INFERENCE,
        ):
            for method, (request, response) in protos.methods(service).items():
                if method.startswith("Server") or "Stream" in method:
                    continue
                call: Any = channel.unary_unary(
                    f"/{service}/{method}",
                    request_serializer=request.SerializeToString,
                    response_deserializer=response.FromString,
                )
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call(request())
                assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED, method
        stream: Any = channel.stream_stream(f"/{protos.IMAGE_CLASSIFICATION}/ClassifyStream")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stream(iter([b""])).read()
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        request, response = protos.methods(protos.MODEL_SERVICE)["GetModelStatus"]
        status: Any = channel.unary_unary(
            f"/{protos.MODEL_SERVICE}/GetModelStatus",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        asked = request()
        asked.model_spec.name = "digits"
        for metadata in ((("authorization", f"Bearer {key}"),), (("x-api-key", key),)):
            assert (await status(asked, metadata=metadata)).model_version_status


async def reload(running: Running, key: str) -> Any:
    request, response = protos.methods(protos.MODEL_SERVICE)["HandleReloadConfigRequest"]
    message = request()
    for name in ("flowers", "digits"):
        message.config.model_config_list.config.add(name=name, base_path=f"/models/{name}")
    async with grpc.aio.insecure_channel(running.grpc_address) as channel:
        call: Any = channel.unary_unary(
            f"/{protos.MODEL_SERVICE}/HandleReloadConfigRequest",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        return await call(message, metadata=(("x-api-key", key),))


async def test_commands_say_how_a_key_is_passed(
    replica: ScriptedReplica, key_file: Path, tmp_path: Path
) -> None:
    keys_command("add", "a", f"--file={key_file}")
    picture = tmp_path / "a.png"
    picture.write_bytes(grey_png(200))
    async with keyed(replica, key_file) as (up, _):
        for arguments in (["classify", str(picture)], ["models"]):
            invoke = CliRunner(env={"SLUICE_API_KEY": None}).invoke
            result = await asyncio.to_thread(invoke, build(), [*arguments, f"--url={up.http_url}"])
            assert result.exit_code == 2
            assert "refused: it requires a key: pass --api-key, or better set SLUICE" in result.stderr


async def test_only_an_admin_changes_the_models(replica: ScriptedReplica, key_file: Path) -> None:
    common = keys_command("add", "a", f"--file={key_file}")
    admin = keys_command("add", "root", "--scope=admin", f"--file={key_file}")
    async with keyed(replica, key_file) as (running, client):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await reload(running, common)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert (replica.reloaded, running.catalog.names()) == ([], ["digits"])
        await reload(running, admin)
        (config,) = replica.reloaded
        assert [each.name for each in config.model_config_list.config] == ["flowers", "digits"]
        assert running.catalog.names() == ["digits", "flowers"]
        denied = await post(client, bearer(admin))
        assert denied.status_code == 403
        assert denied.json()["detail"] == 'this needs the scope "classify"; root has: admin'


async def test_an_admin_sees_what_every_task_is_doing(replica: ScriptedReplica, key_file: Path) -> None:
    common = keys_command("add", "a", f"--file={key_file}")
    admin = keys_command("add", "root", "--scope=admin", f"--file={key_file}")
    held = asyncio.Event()

    async def hold(_request: Any) -> None:
        await held.wait()

    replica.before_predict = hold
    async with keyed(replica, key_file) as (running, client):
        assert (await client.get("/v1/stacks")).status_code == 401
        assert (await client.get("/v1/stacks", headers=bearer(common))).status_code == 403
        stuck = asyncio.create_task(post(client, bearer(common)))
        while running.gateway.admission.in_flight < 1:
            await asyncio.sleep(0.005)
        told = (await client.get("/v1/stacks", headers=bearer(admin))).text
        held.set()
        assert (await stuck).status_code == 200
    assert "in classify" in told  # where the request waits
    assert "Thread MainThread:" in told
    assert common not in told


async def test_a_revoked_key_is_soon_refused(replica: ScriptedReplica, key_file: Path) -> None:
    assert WATCH_INTERVAL_S < 1
    key = keys_command("add", "a", f"--file={key_file}")
    async with keyed(replica, key_file) as (_, client):
        assert (await post(client, bearer(key))).status_code == 200
        await asyncio.to_thread(keys_command, "revoke", "a", f"--file={key_file}")
        async with asyncio.timeout(60):
            while (await post(client, bearer(key))).status_code != 401:
                await asyncio.sleep(0.02)
        again = await asyncio.to_thread(keys_command, "add", "b", f"--file={key_file}")
        async with asyncio.timeout(60):
            while (await post(client, bearer(again))).status_code != 200:
                await asyncio.sleep(0.02)
        # A file that turns bad leaves what it said in force.
        await asyncio.to_thread(key_file.write_text, "[[[")
        await asyncio.sleep(2 * WATCH_INTERVAL_S)
        assert (await post(client, bearer(again))).status_code == 200


@pytest.mark.parametrize("later", [(b"first", b"first"), (b"second", b"third")], ids=["as-it-was", "changed"])
async def test_a_file_that_is_away_is_told_of_once_each_time(
    tmp_path: Path, later: tuple[bytes, bytes]
) -> None:
    path = tmp_path / "keys.toml"
    path.write_bytes(b"first")
    watched = WatchedFile(path, bytes.decode)
    with capture_logs() as lines:
        for content in later:
            path.unlink()
            for _ in range(3):
                await watched.refresh()
            path.write_bytes(content)
            await watched.refresh()
    assert watched.value == path.read_text()
    errors = [line["error"] for line in lines if line["log_level"] == "error"]
    assert errors == [f"cannot read {path}: No such file or directory"] * 2


async def test_that_a_file_has_changed_is_told(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_bytes(b"first")
    watched = WatchedFile(path, bytes.decode)
    with capture_logs() as lines:
        await watched.refresh()
        path.write_bytes(b"second")
        await watched.refresh()
    (line,) = lines
    assert (line["event"], line["file"]) == ("a credentials file changed", str(path))


async def test_a_changed_file_is_read_beside_the_event_loop(tmp_path: Path) -> None:
    """Parsing ten thousand keys takes half a second, and would hold up all requests."""
    parsed_by = []

    def parse(content: bytes) -> bytes:
        parsed_by.append(threading.get_ident())
        return content

    path = tmp_path / "keys.toml"
    path.write_bytes(b"first")
    watched = WatchedFile(path, parse)
    path.write_bytes(b"second")
    await watched.refresh()
    assert watched.value == b"second"
    assert len(parsed_by) == 2
    assert parsed_by[1] != threading.get_ident()


async def test_each_key_has_its_own_rate_and_concurrency(replica: ScriptedReplica, key_file: Path) -> None:
    slow = keys_command("add", "slow", "--rate=2/hour", f"--file={key_file}")
    narrow = keys_command("add", "narrow", "--max-concurrent=1", f"--file={key_file}")
    free = keys_command("add", "free", f"--file={key_file}")
    held = asyncio.Event()

    async def hold(_request: Any) -> None:
        await held.wait()

    async with keyed(replica, key_file) as (running, client):
        codes = [(await post(client, bearer(slow))).status_code for _ in range(3)]
        assert codes == [200, 200, 429]
        refused = await post(client, bearer(slow))
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["type"] == "urn:sluice:problem:rate-limited"
        assert refused.json()["retryable"] is True
        replica.before_predict = hold
        first = asyncio.create_task(post(client, bearer(narrow)))
        while running.gateway.admission.in_flight < 1:
            await asyncio.sleep(0.005)
        second = await post(client, bearer(narrow))
        other = asyncio.create_task(post(client, bearer(free)))
        held.set()
        assert second.status_code == 429
        assert "1 requests in flight" in second.json()["detail"]
        assert (await first).status_code == 200
        assert (await other).status_code == 200
        assert (await post(client, bearer(narrow))).status_code == 200
        assert running.gateway.admission.in_flight == 0

"""API keys, tokens, their limits, and that no secret is ever written anywhere."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, OctKey
from structlog.testing import capture_logs
from typer.testing import CliRunner

from serving import protos
from serving.access.callers import WATCH_INTERVAL_S, Callers, WatchedFile
from serving.access.keys import Keys, hash_of, new_key, read_keys
from serving.access.tokens import Tokens
from serving.cli import build
from serving.commands import keys as keys_command_module
from serving.errors import InvalidInput, Unauthenticated
from serving.main import Running
from serving.settings import Settings
from tests.doors.replica import ScriptedReplica
from tests.support.gateways import counted, gateway_over
from tests.support.http import grey_png

PATH = "/v1/models/digits:classify"
PNG = {"content-type": "image/png"}


def keys_command(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(build(), ["keys", *arguments])
    assert result.exit_code == code, result.output
    return result.output.strip()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


@asynccontextmanager
async def keyed(
    replica: ScriptedReplica, file: Path, **settings: Any
) -> AsyncIterator[tuple[Running, httpx.AsyncClient]]:
    async with gateway_over(replica, keys_file=file, **settings) as both:
        yield both


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def post(client: httpx.AsyncClient, headers: dict[str, str]) -> httpx.Response:
    return await client.post(PATH, content=grey_png(200), headers={**PNG, **headers})


def test_the_file_keeps_hashes_only(key_file: Path) -> None:
    key = keys_command("add", "camera", "--rate=5/second", "--max-concurrent=2", f"--file={key_file}")
    text = key_file.read_text()
    secret = key.split("_", 2)[2]
    assert secret not in text
    assert hash_of(key) in text
    assert key_file.stat().st_mode & 0o077 == 0
    caller = read_keys(text, "x").caller(key)
    assert (caller.name, caller.scopes, caller.max_concurrent) == ("camera", frozenset(["classify"]), 2)
    assert "camera" in keys_command("list", f"--file={key_file}")
    keys_command("add", "camera", f"--file={key_file}", code=1)
    keys_command("revoke", "camera", f"--file={key_file}")
    with pytest.raises(Unauthenticated):
        read_keys(key_file.read_text(), "x").caller(key)
    keys_command("revoke", "camera", f"--file={key_file}", code=1)


@pytest.mark.parametrize(
    "name", ["Kamera Süd", "drone \U0001f680", 'the "new" \\ one', "a\tb\nc", "del\x7f", "[/b]"]
)
def test_a_key_may_have_any_name(key_file: Path, name: str) -> None:
    key = keys_command("add", name, f"--file={key_file}")
    other = keys_command("add", "other", f"--file={key_file}")
    read = read_keys(key_file.read_text("utf-8"), "x")
    assert (read.caller(key).name, read.caller(other).name) == (name, "other")
    assert name.split()[0] in keys_command("list", f"--file={key_file}")
    keys_command("revoke", name, f"--file={key_file}")
    assert len(read_keys(key_file.read_text("utf-8"), "x")) == 1


def test_commands_that_change_a_file_at_once_lose_nothing(
    key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()

    def asking(descriptor: int, operation: int) -> None:
        asked.set()
        fcntl.flock(descriptor, operation)

    monkeypatch.setattr(keys_command_module, "flock", asking)
    folder = os.open(key_file.parent, os.O_RDONLY)
    with ThreadPoolExecutor(1) as pool:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            second = pool.submit(keys_command, "add", "second", f"--file={key_file}")
            assert asked.wait(60)
            _, first = new_key("first", ["classify"])
            key_file.write_text(f'[[keys]]\nid = "{first.id}"\nname = "first"\nhash = "{first.hash}"\n')
        finally:
            os.close(folder)
        second.result()
    assert len(read_keys(key_file.read_text(), "x")) == 2


@pytest.mark.parametrize("arguments", [["add", "a"], ["list"], ["revoke", "a"]])
def test_a_file_of_keys_that_is_no_text_is_told_and_stays(key_file: Path, arguments: list[str]) -> None:
    key_file.write_bytes(b"# n\xe9\n")
    assert "is not UTF-8" in keys_command(*arguments, f"--file={key_file}", code=2)
    assert key_file.read_bytes() == b"# n\xe9\n"
    with pytest.raises(InvalidInput, match=r"keys\.toml is not UTF-8"):
        Callers.from_settings(Settings(keys_file=key_file))


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["add", "a", "--rate=often"], 2, 'error: rate: "often" is no rate; one is "20/second"'),
        (
            ["add", "a", "--scope=all"],
            2,
            "error: scopes[0]: input should be 'classify' or 'admin', got 'all'",
        ),
        (
            ["add", "a", "--file=/nowhere/keys.toml"],
            2,
            "error: there is no folder /nowhere to write keys.toml",
        ),
        (
            ["list", "--file=/nowhere/keys.toml"],
            1,
            "error: there is no file /nowhere/keys.toml; `sluice keys",
        ),
        (["add", "half \udcff"], 2, "error: name: input should be a valid string"),
        (["revoke", "a"], 1, "error: there is no file"),
        (["revoke", "a", "--file=/nowhere/keys.toml"], 2, "error: there is no folder /nowhere to write"),
    ],
)
def test_what_keys_cannot_do_is_said(arguments: list[str], code: int, says: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        build(), ["keys", *arguments], env={"SLUICE_KEYS_FILE": str(tmp_path / "k.toml")}
    )
    assert (result.exit_code, result.stderr[: len(says)]) == (code, says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("keys = 3", "keys: input should be a valid list"),
        ("[[keys]", "is not TOML"),
        ('[[keys]]\nid="12345678"\nname="a"\nhash="s3cret"', "keys[0].hash"),
        ('[[keys]]\nid="12345678"\nname="a"\nhash="sha256:%s"\nrate="often"' % ("0" * 64), "is no rate"),
        ('[[keys]]\nid="12345678"\nname="a"\nhash="sha256:%s"\nscopes=["all"]' % ("0" * 64), "scopes"),
        ('[[keys]]\nid="12345678"\nname="a"\nhash="sha256:%s"\n' % ("0" * 64) * 2, "more than once"),
    ],
)
def test_a_bad_file_is_refused_and_never_quoted(text: str, says: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_keys(text, "keys.toml")
    assert says in refused.value.message
    assert "keys.toml" in refused.value.message
    assert "s3cret" not in refused.value.message


def test_wrong_keys_get_one_text_and_about_one_time() -> None:
    key, entry = new_key("a", ["classify"])
    revoked, _ = new_key("b", ["classify"])
    keys = Keys({entry.id: entry})
    wrong = [
        revoked,
        key[:-1] + ("A" if key[-1] != "A" else "B"),
        "",
        "nonsense",
        f"other_{key}",
        key.upper(),
    ]
    texts = set()
    for each in wrong:
        with pytest.raises(Unauthenticated) as refused:
            keys.caller(each)
        texts.add(refused.value.message)
    assert len(texts) == 1

    def seconds(candidate: str) -> float:
        best = 1.0
        for _ in range(300):
            started = time.perf_counter()
            with pytest.raises(Unauthenticated):
                keys.caller(candidate)
            best = min(best, time.perf_counter() - started)
        return best

    # The work is one hash and one comparison either way: a lookup that ended early would take a third.
    assert 0.5 < seconds(wrong[1]) / seconds(revoked) < 2


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
    message.config.model_config_list.config.add(name="digits", base_path="/models/digits")
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
            assert "refused: it asks for a key: pass --api-key, or better set SLUICE" in result.stderr


async def test_only_an_admin_changes_the_models(replica: ScriptedReplica, key_file: Path) -> None:
    common = keys_command("add", "a", f"--file={key_file}")
    admin = keys_command("add", "root", "--scope=admin", f"--file={key_file}")
    async with keyed(replica, key_file) as (running, client):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await reload(running, common)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert replica.reloaded == []
        await reload(running, admin)
        (config,) = replica.reloaded
        assert [each.name for each in config.model_config_list.config] == ["digits"]
        denied = await post(client, bearer(admin))
        assert denied.status_code == 403
        assert 'the scope "classify"' in denied.json()["detail"]


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


def signed(key: Any, **claims: Any) -> str:
    header = {"alg": "ES256", "kid": key.kid} if isinstance(key, ECKey) else {"alg": "HS256"}
    claims = {"sub": "robot", "exp": int(time.time()) + 600, **claims}
    return jwt.encode(header, {name: value for name, value in claims.items() if value is not None}, key)


async def test_tokens_are_taken_where_their_keys_are_known(replica: ScriptedReplica, tmp_path: Path) -> None:
    key = ECKey.generate_key("P-256", {"kid": "1"}, auto_kid=True)
    stranger = ECKey.generate_key("P-256", {"kid": "1"}, auto_kid=True)
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps(KeySet([key]).as_dict(private=False)))
    async with gateway_over(replica, jwks_file=file, jwt_audience="sluice") as (_, client):
        good = signed(key, scope="classify other", aud="sluice")
        assert (await post(client, bearer(good))).status_code == 200
        bad = [
            signed(key, scope="classify", aud="else"),
            signed(key, scope="classify"),
            signed(key, scope="classify", aud="sluice", exp=int(time.time()) - 600),
            signed(stranger, scope="classify", aud="sluice"),
            signed(OctKey.import_key("0123456789abcdef"), scope="classify", aud="sluice"),
            good[:-6] + "AAAAAA",
            good.rsplit(".", 1)[0] + ".",
            "a.b.c",
            "not-a-token",
        ]
        for token in bad:
            assert (await post(client, bearer(token))).status_code == 401, token
        without = signed(key, aud="sluice")
        assert (await post(client, bearer(without))).status_code == 403


def test_a_token_is_of_its_issuer_names_its_caller_and_ends() -> None:
    key = ECKey.generate_key("P-256", {"kid": "1"}, auto_kid=True)
    jwks = json.dumps(KeySet([key]).as_dict(private=False)).encode()
    tokens = Tokens(jwks, "jwks.json", issuer="https://id.example", audience=None)
    caller = tokens.caller(signed(key, iss="https://id.example", scope="admin other classify"))
    assert (caller.name, caller.scopes) == ("token:robot", frozenset(["admin", "classify"]))
    for wrong in (
        signed(key, scope="classify"),
        signed(key, scope="classify", iss="https://other.example"),
        signed(key, scope="classify", iss="https://id.example", sub=None),
        signed(key, scope="classify", iss="https://id.example", exp=None),
        signed(key, scope="classify", iss="https://id.example", nbf=int(time.time()) + 600),
    ):
        with pytest.raises(Unauthenticated):
            tokens.caller(wrong)


def test_a_token_is_taken_by_a_clock_that_is_half_a_minute_off() -> None:
    key = ECKey.generate_key("P-256", {"kid": "1"}, auto_kid=True)
    jwks = json.dumps(KeySet([key]).as_dict(private=False)).encode()
    tokens = Tokens(jwks, "jwks.json", issuer=None, audience=None)
    now = int(time.time())
    for good in ({"exp": now - 5}, {"nbf": now + 25}):
        assert tokens.caller(signed(key, **good)).name == "token:robot"
    for wrong in ({"exp": now - 35}, {"nbf": now + 60}):
        with pytest.raises(Unauthenticated):
            tokens.caller(signed(key, **wrong))


def test_a_jwks_file_of_secrets_is_refused() -> None:
    secret = json.dumps(KeySet([OctKey.import_key("0123456789abcdef0123")]).as_dict(private=True))
    with pytest.raises(InvalidInput, match="only public keys"):
        Tokens(secret.encode(), "jwks.json", issuer=None, audience=None)
    for text in (b"[]", b"{", b'{"keys": [1]}', b'{"keys": [{"kty": "EC"}]}'):
        with pytest.raises(InvalidInput, match=r"jwks\.json is no JWKS"):
            Tokens(text, "jwks.json", issuer=None, audience=None)

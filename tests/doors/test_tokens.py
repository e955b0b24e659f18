"""JSON web tokens as credentials: whose are taken, for how long, and from which key sets."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, OctKey, OKPKey, RSAKey
from structlog.testing import capture_logs

from serving.access.keys import REFUSAL
from serving.access.tokens import Tokens
from serving.errors import InvalidInput, Unauthenticated
from tests.doors.credentials import bearer, keys_command, post
from tests.doors.replica import ScriptedReplica
from tests.support.gateways import gateway_over


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


async def test_tokens_are_taken_of_the_issuer_that_is_set(replica: ScriptedReplica, tmp_path: Path) -> None:
    key = ECKey.generate_key("P-256", {"kid": "1"})
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps(KeySet([key]).as_dict(private=False)))
    async with gateway_over(replica, jwks_file=file, jwt_issuer="https://id.example") as (_, client):
        for issuer, status in (("https://id.example", 200), ("https://other.example", 401), (None, 401)):
            token = signed(key, scope="classify", iss=issuer)
            assert (await post(client, bearer(token))).status_code == status


async def test_keys_of_an_issuer_that_are_changed_are_followed(
    replica: ScriptedReplica, tmp_path: Path
) -> None:
    first, second = (ECKey.generate_key("P-256", {"kid": kid}) for kid in ("1", "2"))
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps(KeySet([first]).as_dict(private=False)))
    async with gateway_over(replica, jwks_file=file) as (_, client):
        assert (await post(client, bearer(signed(first, scope="classify")))).status_code == 200
        file.write_text(json.dumps(KeySet([second]).as_dict(private=False)))
        async with asyncio.timeout(60):
            while (await post(client, bearer(signed(second, scope="classify")))).status_code != 200:
                await asyncio.sleep(0.02)
        for wrong in (signed(first, scope="classify"), "no-token"):
            answer = await post(client, bearer(wrong))
            assert (answer.status_code, answer.json()["detail"]) == (401, REFUSAL)


async def test_keys_and_tokens_are_taken_beside_each_other(
    replica: ScriptedReplica, tmp_path: Path, key_file: Path
) -> None:
    signs = ECKey.generate_key("P-256", {"kid": "1"})
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps(KeySet([signs]).as_dict(private=False)))
    key = keys_command("add", "a", f"--file={key_file}")
    async with gateway_over(replica, jwks_file=file, keys_file=key_file) as (_, client):
        for credential, status in (
            (bearer(key), 200),
            (bearer(signed(signs, scope="classify")), 200),
            (bearer("neither"), 401),
            (bearer("a.b.c"), 401),
            ({}, 401),
        ):
            assert (await post(client, credential)).status_code == status


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
    for text in (b"[]", b"{", b'{"keys": {}}', b"\xff"):
        with pytest.raises(InvalidInput, match=r"jwks\.json is not a JWKS"):
            Tokens(text, "jwks.json", issuer=None, audience=None)


USELESS: dict[str, Any] = {
    "its alg is ML-DSA-44": {"kty": "AKP", "alg": "ML-DSA-44", "pub": "AAAA"},
    "Invalid key type: 'AKP'": {"kty": "AKP", "pub": "AAAA"},
    "its crv is BP-256": {"kty": "EC", "crv": "BP-256", "x": "AAAA", "y": "AAAA"},
    "its crv is X25519": {"kty": "OKP", "crv": "X25519", "x": "A" * 43},
    "'y' is required": {"kty": "EC", "crv": "P-256", "x": "AAAA"},
    "not on the curve": {"kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA"},
    "its alg is RSA-OAEP": {"kty": "RSA", "alg": "RSA-OAEP", "n": "AAAA", "e": "AQAB"},
    "it is not for signatures": {"kty": "RSA", "use": "enc", "n": "AAAA", "e": "AQAB"},
    "it is damaged": {"kty": "RSA", "n": "*", "e": "AQAB"},
    "it is not an object": 7,
}


@pytest.mark.parametrize("why", USELESS)
def test_keys_of_no_use_are_passed_over_and_told_of(why: str) -> None:
    """As RFC 7517 (5) has it: an issuer may add a key of a new kind beside the others."""
    key = ECKey.generate_key("P-256", {"kid": "good"})
    useless = {**USELESS[why], "kid": "new"} if isinstance(USELESS[why], dict) else USELESS[why]
    both = {"keys": [useless, key.as_dict(private=False)]}
    with capture_logs() as lines:
        tokens = Tokens(json.dumps(both).encode(), "jwks.json", issuer=None, audience=None)
    assert tokens.caller(signed(key)).name == "token:robot"
    (line,) = lines
    assert (line["event"], line["file"], line["number"]) == (
        "a key for tokens cannot be used here", "jwks.json", 1,
    )  # fmt: skip
    assert line["kid"] == ("new" if isinstance(useless, dict) else None)
    assert why in line["why"]
    with pytest.raises(InvalidInput, match=r"jwks\.json has no key that can verify a token") as none:
        Tokens(json.dumps({"keys": [useless]}).encode(), "jwks.json", issuer=None, audience=None)
    assert why in none.value.message


def test_a_jwks_file_without_keys_is_refused() -> None:
    with pytest.raises(InvalidInput, match="has no key that can verify a token: there is none"):
        Tokens(b'{"keys": []}', "jwks.json", issuer=None, audience=None)


@pytest.mark.parametrize(
    "key",
    [
        RSAKey.generate_key(2048, {"kid": "1", "use": "sig", "key_ops": ["verify"]}),
        OKPKey.generate_key("Ed25519", {"kid": "1"}),
        ECKey.generate_key("P-521", {"kid": "1", "alg": "ES512"}),
    ],
    ids=("RSA", "OKP", "EC"),
)
def test_keys_of_every_kind_that_signs_are_taken(key: RSAKey | OKPKey | ECKey) -> None:
    algorithm = {"RSA": "PS384", "OKP": "Ed25519", "EC": "ES512"}[key.key_type]
    jwks = json.dumps(KeySet([key]).as_dict(private=False)).encode()
    signing = type(key).import_key(key.as_dict(private=True) | {"key_ops": ["sign"]})
    claims = {"sub": "robot", "exp": int(time.time()) + 600}
    token = jwt.encode({"alg": algorithm, "kid": "1"}, claims, signing, algorithms=[algorithm])
    with capture_logs() as lines:
        tokens = Tokens(jwks, "jwks.json", issuer=None, audience=None)
    assert tokens.caller(token).name == "token:robot"
    assert lines == []

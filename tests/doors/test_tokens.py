"""JSON web tokens as credentials: whose are taken, for how long, and from which key sets."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, OctKey

from serving.access.tokens import Tokens
from serving.errors import InvalidInput, Unauthenticated
from tests.doors.credentials import bearer, post
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

"""JSON Web Tokens (RFC 7519) in place of API keys, checked against a JWKS file (RFC 7517).

Only signatures by public keys are taken: with a shared secret, whoever can check could also sign.
A token's `sub` names the caller, its `scope` (RFC 8693: separated by spaces) what the caller may.
"""

from __future__ import annotations

from typing import Any

import orjson
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from serving.access.keys import REFUSAL, Caller, Scope
from serving.errors import InvalidInput, Unauthenticated

ALGORITHMS = [
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "Ed25519",
    "EdDSA",
]
CLOCK_SKEW_S = 30
_SCOPES: tuple[Scope, ...] = ("classify", "admin")


class Tokens:
    """Checks tokens against the keys of one JWKS document.

    Args:
        jwks: the document.
        source: what it is called in errors.
        issuer: the `iss` that a token must have; None: any.
        audience: the `aud` that a token must have; None: any.

    Raises:
        InvalidInput: the document is not a JWKS of public keys.
    """

    def __init__(self, jwks: bytes, source: str, *, issuer: str | None, audience: str | None) -> None:
        try:
            self._keys = KeySet.import_key_set(orjson.loads(jwks))
        except (JoseError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInput(f"{source} is no JWKS document: {error}") from None
        for key in self._keys.keys:
            if key.key_type == "oct":
                raise InvalidInput(f"{source} holds a shared secret (kty oct); only public keys are taken")
        required: dict[str, Any] = {"exp": {"essential": True}, "sub": {"essential": True}}
        if issuer is not None:
            required["iss"] = {"essential": True, "value": issuer}
        if audience is not None:
            required["aud"] = {"essential": True, "value": audience}
        self._claims = jwt.JWTClaimsRegistry(leeway=CLOCK_SKEW_S, **required)

    def caller(self, token: str) -> Caller:
        """Whose token it is; raises Unauthenticated, with one text whatever is wrong."""
        try:
            decoded = jwt.decode(token, self._keys, algorithms=ALGORITHMS)
            self._claims.validate(decoded.claims)
        except (JoseError, ValueError, KeyError, TypeError) as error:
            raise Unauthenticated(REFUSAL, stage="admission") from error
        given = str(decoded.claims.get("scope", "")).split()
        scopes = frozenset(scope for scope in _SCOPES if scope in given)
        return Caller(f"token:{decoded.claims['sub']}", scopes)

"""JSON Web Tokens (RFC 7519) in place of API keys, checked against a JWKS file (RFC 7517).

Only public-key signatures are accepted: with a shared secret, whoever can verify could also sign.
A token's `sub` names the caller, its `scope` (RFC 8693: separated by spaces) what the caller may do.
"""

from __future__ import annotations

from typing import Any

import orjson
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import JWKRegistry, Key, KeySet

from serving.access.keys import REFUSAL, Caller, Scope
from serving.errors import InvalidInput, Unauthenticated

_log = structlog.get_logger()

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
# Those that these algorithms sign on; an RSA key has none.
_CURVES = ("P-256", "P-384", "P-521", "Ed25519", "Ed448")
CLOCK_SKEW_S = 30
_SCOPES: tuple[Scope, ...] = ("classify", "admin")


class Tokens:
    """Checks tokens against the keys of one JWKS document.

    Keys that cannot be used here are skipped, and the log says so (RFC 7517, 5): an issuer may add one of a
    new kind to the others.

    Args:
        jwks: the document.
        source: what it is called in errors.
        issuer: the `iss` that a token must have; None: any.
        audience: the `aud` that a token must have; None: any.

    Raises:
        InvalidInput: the document is not a JWKS, holds a secret, or has no usable key.
    """

    def __init__(self, jwks: bytes, source: str, *, issuer: str | None, audience: str | None) -> None:
        self._keys = _usable_keys(jwks, source)
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


def _usable_keys(jwks: bytes, source: str) -> KeySet:
    """The keys of a document that can verify a token; raises InvalidInput as `Tokens` does."""
    try:
        document = orjson.loads(jwks)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"{source} is not a JWKS document: {error}") from None
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise InvalidInput(f'{source} is not a JWKS document: it is an object with an array "keys"')
    usable, reason = [], "there is none"
    for number, each in enumerate(listed, 1):
        if isinstance(each, dict) and each.get("kty") == "oct":
            raise InvalidInput(f"{source} holds a shared secret (kty oct); only public keys are accepted")
        try:
            usable.append(_usable_key(each))
        except (JoseError, ValueError, KeyError, TypeError, AttributeError, UnsupportedAlgorithm) as error:
            kid = each.get("kid") if isinstance(each, dict) else None
            reason = str(error) or "it is damaged"
            _log.warning(
                "a key for tokens cannot be used here", file=source, number=number, kid=kid, why=reason
            )
    if not usable:
        raise InvalidInput(f"{source} has no key that can verify a token: {reason}")
    return KeySet(usable)


def _usable_key(given: Any) -> Key:
    """The key; raises an error that says why it cannot be used."""
    if not isinstance(given, dict):
        raise TypeError("it is not an object")
    if "alg" in given and given["alg"] not in ALGORITHMS:
        raise ValueError(f"its alg is {given['alg']}; supported are {', '.join(ALGORITHMS)}")
    if given.get("use", "sig") != "sig" or "verify" not in given.get("key_ops", ["verify"]):
        raise ValueError("it is not for signatures")
    if given.get("kty") in ("EC", "OKP") and given.get("crv") not in _CURVES:
        raise ValueError(f"its crv is {given.get('crv')}; supported are {', '.join(_CURVES)}")
    return JWKRegistry.import_key(given)

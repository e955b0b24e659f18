"""API keys: made here, kept as hashes in a TOML file, looked up in constant time.

A key is `sluice_<id>_<secret>`. The secret is 32 random bytes, so one SHA-256 is enough to keep it: there
is nothing to guess, and a slow hash would only let strangers burn the gateway's time. The file holds

    [[keys]]
    id = "5f0c1a9e"
    name = "camera-7"
    hash = "sha256:…"
    scopes = ["classify"]       # or "admin", or both
    rate = "20/second"          # optional; any form that the `limits` package reads
    max_concurrent = 8          # optional
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from limits import RateLimitItem, parse_many
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from serving.errors import InvalidInput, Unauthenticated
from serving.faults import told

Scope = Literal["classify", "admin"]

PREFIX = "sluice"
# One text for every way of being wrong: it must not tell a revoked key from one that never was.
REFUSAL = (
    "the API key is missing or not valid; send it as `Authorization: Bearer <key>` or `X-API-Key: <key>` "
    "(in gRPC: as metadata of these names)"
)
_NO_HASH = hashlib.sha256(secrets.token_bytes(32)).hexdigest()
_HASH = r"^sha256:[0-9a-f]{64}$"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and what they may.

    Attributes:
        name: for limits, logs and metrics; the key's name, or a token's subject.
        scopes: what the caller may do.
        rate: requests that are allowed in a window; None: no limit.
        max_concurrent: requests in flight at once; None: no limit.
    """

    name: str
    scopes: frozenset[Scope]
    rate: RateLimitItem | None = None
    max_concurrent: int | None = None


class KeyEntry(BaseModel):
    """One key of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]
    name: Annotated[str, Field(min_length=1, max_length=100)]
    hash: Annotated[str, Field(pattern=_HASH)]
    scopes: Annotated[list[Scope], Field(min_length=1)] = ["classify"]
    rate: str | None = None
    max_concurrent: Annotated[int, Field(ge=1)] | None = None

    @field_validator("rate")
    @classmethod
    def _rate_is_one(cls, value: str | None) -> str | None:
        if value is not None:
            _read_rate(value)
        return value

    def caller(self) -> Caller:
        """The caller that this key stands for."""
        rate = None if self.rate is None else _read_rate(self.rate)
        return Caller(self.name, frozenset(self.scopes), rate, self.max_concurrent)


class KeyFile(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: list[KeyEntry] = []

    @field_validator("keys")
    @classmethod
    def _ids_and_names_are_unique(cls, value: list[KeyEntry]) -> list[KeyEntry]:
        for what in ("id", "name"):
            counts = Counter(getattr(each, what) for each in value)
            twice = [each for each, count in counts.items() if count > 1]
            if twice:
                raise ValueError(f"the {what} {min(twice)} appears more than once")
        return value


def _read_rate(text: str) -> RateLimitItem:
    try:
        items = parse_many(text)
    except ValueError:
        items = []
    if len(items) != 1 or items[0].amount < 1:
        raise ValueError(
            f'"{text}" is not a rate; write one like "20/second", "1000/hour" or "5 per 2 minutes"'
        )
    return items[0]


class Keys:
    """The keys of one file, ready to be looked up."""

    def __init__(self, entries: Mapping[str, KeyEntry]) -> None:
        self._hashes = {id_: entry.hash.removeprefix("sha256:") for id_, entry in entries.items()}
        self._callers = {id_: entry.caller() for id_, entry in entries.items()}

    def __len__(self) -> int:
        return len(self._callers)

    def caller(self, key: str) -> Caller:
        """Whose key it is; raises Unauthenticated, after equal work and with one text whatever is wrong."""
        prefix, _, rest = key.partition("_")
        id_ = rest.partition("_")[0]
        expected = self._hashes.get(id_, _NO_HASH)
        right = hmac.compare_digest(expected, hash_of(key))
        found = self._callers.get(id_)
        if not right or found is None or prefix != PREFIX:
            raise Unauthenticated(REFUSAL, stage="admission")
        return found


def read_keys(text: str, source: str) -> Keys:
    """The keys in a file's text; raises InvalidInput that names `source` and what is wrong there."""
    return Keys({entry.id: entry for entry in parse(text, source).keys})


def parse(text: str, source: str) -> KeyFile:
    """The entries in a file's text; raises InvalidInput that names `source` and what is wrong there."""
    try:
        return KeyFile.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{source} is not TOML: {error}") from error
    except ValidationError as error:
        # Never the input itself: someone may have pasted a key in place of its hash.
        raise InvalidInput(f"{source}: {told(error, of='keys', with_input=False)}") from None


def hash_of(key: str) -> str:
    """What is stored of a key: its SHA-256, in hexadecimal."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def new_key(
    name: str, scopes: Sequence[str], rate: str | None = None, max_concurrent: int | None = None
) -> tuple[str, KeyEntry]:
    """A new key, to be shown once, and the entry that is stored for it."""
    id_ = secrets.token_hex(4)
    key = f"{PREFIX}_{id_}_{secrets.token_urlsafe(32)}"
    try:
        entry = KeyEntry.model_validate(
            {
                "id": id_,
                "name": name,
                "hash": f"sha256:{hash_of(key)}",
                "scopes": list(scopes),
                "rate": rate,
                "max_concurrent": max_concurrent,
            }
        )
    except ValidationError as error:
        raise InvalidInput(told(error, of="key")) from None
    return key, entry

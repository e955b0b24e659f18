"""Who asks: API keys and tokens, from files that are watched.

With neither file there are no callers to tell apart: everyone is `ANONYMOUS`, and may classify.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, Self, TypeVar

import structlog

from serving.access.keys import REFUSAL, Caller, Keys, Scope, read_keys
from serving.errors import InvalidInput, PermissionDenied, Unauthenticated
from serving.settings import Settings

_log = structlog.get_logger()

ANONYMOUS = Caller("anonymous", frozenset(("classify",)))
# A revoked key is refused within two seconds of the file's change; a read of a small file is cheap.
WATCH_INTERVAL_S = 0.5
_BEARER = re.compile(r"bearer +(\S+)", re.IGNORECASE)

Parsed = TypeVar("Parsed")


def credential_in(headers: Mapping[str, str]) -> str | None:
    """The key or token of `Authorization: Bearer …` or, without it, of `X-API-Key`; None if there is none.

    Anything else in `Authorization` is for a proxy in front, not for the gateway.

    Args:
        headers: HTTP headers or gRPC metadata, by their names in lower case.
    """
    authorization = headers.get("authorization")
    found = None if authorization is None else _BEARER.fullmatch(authorization.strip())
    return headers.get("x-api-key") if found is None else found[1]


class WatchedFile(Generic[Parsed]):
    """A file and what was read from it; if it becomes invalid later, the last good reading stays in force.

    Changes are detected by content: times are too coarse, and Kubernetes swaps whole folders.

    Args:
        path: the file.
        parse: reads its content; raises InvalidInput.

    Raises:
        InvalidInput: the file cannot be read, or is invalid.
    """

    def __init__(self, path: Path, parse: Callable[[bytes], Parsed]) -> None:
        self._path = path
        self._parse = parse
        self._content = self._read()
        self._told = ""
        self.value = parse(self._content)

    def _read(self) -> bytes:
        try:
            return self._path.read_bytes()
        except OSError as error:
            raise InvalidInput(f"cannot read {self._path}: {error.strerror}") from error

    async def refresh(self) -> None:
        """Check whether the file has changed, and if so read it again."""
        try:
            content = await asyncio.to_thread(self._read)
            if content == self._content:
                self._told = ""
                return
            self._content = content
            self.value = await asyncio.to_thread(self._parse, content)  # 10,000 keys take half a second
        except InvalidInput as error:
            if error.message != self._told:  # a missing file is missing at every look
                _log.error(
                    "a credentials file is invalid; its previous contents stay in force", error=error.message
                )
            self._told = error.message
        else:
            self._told = ""
            _log.info("a credentials file changed", file=str(self._path))


class Callers:
    """Tells callers apart by what they send.

    Args:
        keys: the watched file of API keys, if there is one.
        tokens: the watched file of public keys for tokens, if there is one.
    """

    def __init__(
        self, keys: WatchedFile[Keys] | None = None, tokens: WatchedFile[TokenCheck] | None = None
    ) -> None:
        self._keys = keys
        self._tokens = tokens

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Read the files that the settings name; raises InvalidInput if one is missing or invalid."""
        keys = tokens = None
        if settings.keys_file is not None:
            source = str(settings.keys_file)
            keys = WatchedFile(settings.keys_file, lambda content: read_keys(_text(content, source), source))
        if settings.jwks_file is not None:
            tokens = WatchedFile(settings.jwks_file, _token_reader(settings))
        return cls(keys, tokens)

    @property
    def open(self) -> bool:
        """Whether anyone may come in: no credentials are required."""
        return self._keys is None and self._tokens is None

    def identify(self, credential: str | None) -> Caller:
        """Who sends this; raises Unauthenticated with one text, whether it is missing, wrong or revoked."""
        if self.open:
            return ANONYMOUS
        if credential is not None and self._tokens is not None and credential.count(".") == 2:
            return self._tokens.value(credential)
        if self._keys is None:
            raise Unauthenticated(REFUSAL, stage="admission")
        return self._keys.value.caller(credential or "")

    def authorize(self, credential: str | None, scope: Scope) -> Caller:
        """Who sends this, if they may do what needs `scope`.

        Raises:
            Unauthenticated: no valid credential.
            PermissionDenied: a valid one without this scope.
        """
        caller = self.identify(credential)
        if scope not in caller.scopes:
            if self.open:
                raise PermissionDenied(
                    f'this needs a key with the scope "{scope}", and this gateway has none: make one with '
                    f"`sluice keys add NAME --scope {scope}`, and start it with --keys keys.toml",
                    stage="admission",
                )
            has = ", ".join(sorted(caller.scopes)) or "none"
            raise PermissionDenied(
                f'this needs the scope "{scope}"; {caller.name} has: {has}', stage="admission"
            )
        return caller

    async def watch(self) -> None:
        """Follow changes of the files, for ever."""
        watched = [file for file in (self._keys, self._tokens) if file is not None]
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            for file in watched:
                await file.refresh()


TokenCheck = Callable[[str], Caller]


def _token_reader(settings: Settings) -> Callable[[bytes], TokenCheck]:
    # Cryptography costs a tenth of a second and 10 MB: only those who use tokens pay.
    from serving.access.tokens import Tokens

    def read(content: bytes) -> TokenCheck:
        return Tokens(
            content, str(settings.jwks_file), issuer=settings.jwt_issuer, audience=settings.jwt_audience
        ).caller

    return read


def _text(content: bytes, source: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{source} is not UTF-8: {error.reason}") from None

"""The certificate, key and authorities of the gateway's ports, reloaded when their files change.

Certificates live for weeks and gateways for longer, and a renewal must not need a restart. Open connections
keep what they began with; later ones get the new files.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
import structlog

from serving.errors import InvalidInput
from serving.settings import Settings

_log = structlog.get_logger()

# Reading three small files is cheap, and a replaced certificate is rarely urgent.
WATCH_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class _Papers:
    """What the files hold, as PEM, and what HTTP makes of it."""

    chain: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext


class _CurrentContext(ssl.SSLContext):
    """Hands each new connection to the context that is in force when it comes.

    Loading new files into one context would replace the certificate, but never remove an authority.
    """

    certificates: Certificates

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """See `ssl.SSLContext.wrap_bio`, with which asyncio and uvloop begin a connection."""
        return self.certificates.context.wrap_bio(*args, **kwargs)


class Certificates:
    """The files of both ports; if they become invalid later, the last good ones stay in force.

    Args:
        certificate: PEM chain.
        key: its PEM private key.
        client_ca: PEM authorities, one of which must have issued a client's certificate; None: none needed.

    Raises:
        InvalidInput: the files cannot be used.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._papers = self._load()
        self._told: str | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> Self | None:
        """Those that the settings name; None without TLS. Raises InvalidInput if they cannot be used."""
        if settings.tls_certificate is None or settings.tls_key is None:
            return None
        return cls(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)

    @property
    def context(self) -> ssl.SSLContext:
        """For connections that begin now."""
        return self._papers.context

    def for_http(self) -> ssl.SSLContext:
        """For a server's whole life."""
        following = _CurrentContext(ssl.PROTOCOL_TLS_SERVER)
        following.certificates = self
        return following

    def for_grpc(self) -> grpc.ServerCredentials:
        """For a server's whole life: gRPC asks for the files in force at each new connection."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration(), self._configuration, require_client_authentication=bool(self._client_ca)
        )

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        papers = self._papers
        return grpc.ssl_server_certificate_configuration([(papers.key, papers.chain)], papers.client_ca)

    def expires(self) -> float:
        """When the certificate in force expires, in Unix seconds."""
        from cryptography import x509  # takes a tenth of a second, only for those with TLS

        return x509.load_pem_x509_certificate(self._papers.chain).not_valid_after_utc.timestamp()

    async def watch(self) -> None:
        """Follow changes of the files, for ever."""
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            await self.refresh()

    async def refresh(self) -> None:
        """Check whether the files have changed, and if so load them."""
        try:
            found = await asyncio.to_thread(self._changed)
        except InvalidInput as error:
            if error.message != self._told:
                _log.error("new TLS files are invalid; the previous ones stay in force", error=error.message)
            self._told = error.message
            return
        self._told = None
        if found is not None:
            self._papers = found
            _log.info("the TLS files changed", file=str(self._certificate), expires=self.expires())

    def _changed(self) -> _Papers | None:
        papers = self._papers
        return None if self._read() == (papers.chain, papers.key, papers.client_ca) else self._load()

    def _read(self) -> tuple[bytes, bytes, bytes | None]:
        files = self._certificate, self._key, self._client_ca
        try:
            chain, key, client_ca = (None if file is None else file.read_bytes() for file in files)
        except OSError as error:
            raise InvalidInput(f"cannot read {error.filename}: {error.strerror}") from error
        assert chain is not None
        assert key is not None
        return chain, key, client_ca

    def _load(self) -> _Papers:
        """What the files hold, if they match each other; files that change meanwhile count as invalid."""
        before = self._read()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._certificate, self._key)
            if self._client_ca is not None:
                context.load_verify_locations(self._client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except OSError as error:  # SSLError is one
            raise InvalidInput(f"cannot use {self._certificate} and its key: {error}") from error
        if self._read() != before:
            raise InvalidInput(f"{self._certificate} and its key are being replaced")
        return _Papers(*before, context)

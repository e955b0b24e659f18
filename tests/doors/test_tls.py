"""TLS and mutual TLS on both ports, with certificates made for the test."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import os
import ssl
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from serving.certificates import WATCH_INTERVAL_S
from serving.client import AsyncClient, AsyncGrpcClient, Client, GrpcClient, Retries
from serving.errors import InvalidInput, Unavailable
from serving.main import gateway_up, new_metrics
from serving.settings import Settings, load
from tests.doors.replica import ScriptedReplica
from tests.support.gateways import counted
from tests.support.http import grey_png
from tests.support.processes import COMMAND


@dataclass(frozen=True)
class Issued:
    """A certificate and its key, as files."""

    certificate: Path
    key: Path


def issue(
    folder: Path,
    name: str,
    issuer: tuple[Any, Any] | None = None,
    lifetime: datetime.timedelta = datetime.timedelta(hours=1),
) -> tuple[Issued, tuple[Any, Any]]:
    """A certificate for 127.0.0.1, by `issuer` or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    by, by_key = issuer or (None, key)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.subject if by is not None else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(by_key, hashes.SHA256())
    )
    files = Issued(folder / f"{name}.pem", folder / f"{name}.key")
    files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return files, (certificate, key)


@dataclass(frozen=True)
class Papers:
    """An authority, a server and a client of it, and a client of another."""

    authority: Issued
    server: Issued
    client: Issued
    stranger: Issued


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    folder = tmp_path_factory.mktemp("papers")
    authority, signing = issue(folder, "authority")
    _, other = issue(folder, "other")
    server, _ = issue(folder, "server", signing)
    client, _ = issue(folder, "client", signing)
    stranger, _ = issue(folder, "stranger", other)
    return Papers(authority, server, client, stranger)


def context(papers: Papers, own: Issued | None = None) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(papers.authority.certificate))
    if own is not None:
        made.load_cert_chain(own.certificate, own.key)
    return made


def credentials(papers: Papers, own: Issued | None = None) -> grpc.ChannelCredentials:
    root = papers.authority.certificate.read_bytes()
    if own is None:
        return grpc.ssl_channel_credentials(root)
    return grpc.ssl_channel_credentials(root, own.key.read_bytes(), own.certificate.read_bytes())


@pytest.mark.parametrize("mutual", [False, True], ids=["tls", "mutual"])
async def test_both_ports_speak_tls(replica: ScriptedReplica, papers: Papers, mutual: bool) -> None:
    settings = Settings(
        http_port=0,
        grpc_port=0,
        status_interval_s=0.05,
        tls_certificate=papers.server.certificate,
        tls_key=papers.server.key,
        tls_client_ca=papers.authority.certificate if mutual else None,
    )
    own = papers.client if mutual else None
    once = Retries(attempts=1)
    async with gateway_up(settings, [replica.address], ["digits"], new_metrics()) as running:
        await running.catalog.ready()
        assert running.http_url.startswith("https://127.0.0.1:")
        target = running.grpc_address
        async with (
            AsyncClient(running.http_url, verify=context(papers, own)) as http,
            AsyncGrpcClient(target, credentials=credentials(papers, own)) as rpc,
        ):
            for client in (http, rpc):
                assert (await client.classify(grey_png(200))).results[0].classes[0].label == "class-7"
        with (
            Client(running.http_url, verify=context(papers, own)) as blocking_http,
            GrpcClient(target, credentials=credentials(papers, own)) as blocking_rpc,
        ):
            for blocking in (blocking_http, blocking_rpc):
                found = await asyncio.to_thread(blocking.classify, grey_png(200))
                assert found.results[0].classes[0].label == "class-7"
        wrong: list[tuple[Any, Any]] = [(True, grpc.ssl_channel_credentials()), (context(papers), None)]
        if mutual:
            wrong.append((context(papers, papers.stranger), credentials(papers, papers.stranger)))
            wrong.append((context(papers), credentials(papers)))
        for verify, channel_credentials in wrong:
            if mutual or verify is True:
                async with AsyncClient(running.http_url, verify=verify, retries=once) as client:
                    untrusted = "the certificate that .* is not trusted .*; SSL_CERT_FILE"
                    with pytest.raises(Unavailable, match=untrusted if verify is True else None):
                        await client.classify(grey_png(1), timeout_s=5)
            async with AsyncGrpcClient(target, credentials=channel_credentials, retries=once) as client:
                with pytest.raises(Unavailable):
                    await client.classify(grey_png(1), timeout_s=5)
        plain = running.http_url.replace("https", "http")
        async with httpx.AsyncClient() as unencrypted:
            with pytest.raises(httpx.TransportError):
                await unencrypted.get(f"{plain}/healthz")


async def test_commands_trust_whom_they_are_told_to(replica: ScriptedReplica, papers: Papers) -> None:
    settings = Settings(
        http_port=0,
        grpc_port=0,
        status_interval_s=0.05,
        tls_certificate=papers.server.certificate,
        tls_key=papers.server.key,
    )

    async def ran(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
        variables = {name: value for name, value in os.environ.items() if name != "SSL_CERT_FILE"}
        return await asyncio.to_thread(
            subprocess.run,
            [*COMMAND, *arguments],
            input=grey_png(200),
            env={**variables, **environment},
            capture_output=True,
            check=False,
        )

    authority = str(papers.authority.certificate)
    async with gateway_up(settings, [replica.address], ["digits"], new_metrics()) as running:
        await running.catalog.ready()
        for arguments in (["models"], ["top", "--once", "--interval=0.1"], ["classify", "-"]):
            refused = await ran(*arguments, f"--url={running.http_url}")
            assert refused.returncode == 2
            assert b"is not trusted" in refused.stderr
            assert b"start one" not in refused.stderr
            trusting = await ran(*arguments, f"--url={running.http_url}", SSL_CERT_FILE=authority)
            assert (trusting.returncode, trusting.stderr) == (0, b"")
            told = await ran(*arguments, f"--url={running.http_url}", f"--ca={authority}")
            assert (told.returncode, told.stderr) == (0, b"")
        at_gateway = ("rollout", "status", f"--gateway={running.http_url}")
        assert b"is not trusted" in (await ran(*at_gateway)).stderr
        assert b"is not trusted" not in (await ran(*at_gateway, f"--ca={authority}")).stderr
        lost = await ran("models", f"--url={running.http_url}", SSL_CERT_FILE="nowhere.pem")
        assert (lost.returncode, b"nowhere.pem cannot be used: No such file" in lost.stderr) == (2, True)


async def test_new_papers_are_taken_without_a_restart(
    replica: ScriptedReplica, papers: Papers, tmp_path: Path
) -> None:
    _, new_authority = issue(tmp_path, "new-authority")
    renewed, _ = issue(tmp_path, "renewed", new_authority, datetime.timedelta(hours=2))
    live = Issued(tmp_path / "live.pem", tmp_path / "live.key")
    authorities = tmp_path / "authorities.pem"
    live.certificate.write_bytes(papers.server.certificate.read_bytes())
    live.key.write_bytes(papers.server.key.read_bytes())
    authorities.write_bytes(papers.authority.certificate.read_bytes())
    settings = Settings(
        http_port=0,
        grpc_port=0,
        status_interval_s=0.05,
        tls_certificate=live.certificate,
        tls_key=live.key,
        tls_client_ca=authorities,
    )
    renewed_papers = replace(papers, authority=Issued(tmp_path / "new-authority.pem", live.key))

    async def answered(trusted: Papers, own: Issued) -> list[bool]:
        """Whether new connections get through, over HTTP and over gRPC."""
        once = Retries(attempts=1)
        found = []
        async with (
            AsyncClient(running.http_url, verify=context(trusted, own), retries=once) as http,
            AsyncGrpcClient(running.grpc_address, credentials=credentials(trusted, own), retries=once) as rpc,
        ):
            for client in (http, rpc):
                try:
                    found.append(bool((await client.classify(grey_png(200), timeout_s=5)).results))
                except Unavailable:
                    found.append(False)
        return found

    async with gateway_up(settings, [replica.address], ["digits"], new_metrics()) as running:
        await running.catalog.ready()
        assert await answered(papers, papers.client) == [True, True]
        before = counted(running, "sluice_tls_certificate_expiry_timestamp_seconds")
        # Half of a change, or nonsense, changes nothing.
        live.certificate.write_bytes(renewed.certificate.read_bytes())
        await asyncio.sleep(2 * WATCH_INTERVAL_S)
        assert await answered(papers, papers.client) == [True, True]
        live.key.write_bytes(renewed.key.read_bytes())
        authorities.write_bytes((tmp_path / "new-authority.pem").read_bytes())
        async with asyncio.timeout(60):
            while await answered(renewed_papers, renewed) != [True, True]:
                await asyncio.sleep(0.1)
        # An authority that was taken away no longer lets its clients in.
        assert await answered(renewed_papers, papers.client) == [False, False]
        assert await answered(papers, papers.client) == [False, False]
        assert counted(running, "sluice_tls_certificate_expiry_timestamp_seconds") > before


async def test_bad_papers_are_said_at_start(replica: ScriptedReplica, papers: Papers, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="tls_certificate and tls_key go together"):
        load(tls_certificate=papers.server.certificate)
    with pytest.raises(InvalidInput, match="tls_client_ca needs tls_certificate"):
        load(tls_client_ca=papers.server.certificate)
    for certificate, key in (
        (tmp_path / "none", papers.server.key),
        (papers.server.certificate, papers.client.key),
    ):
        settings = load(http_port=0, grpc_port=0, tls_certificate=certificate, tls_key=key)
        with pytest.raises(InvalidInput, match=r"cannot (read|use)"):
            async with gateway_up(settings, [replica.address], ["digits"], new_metrics()):
                pass

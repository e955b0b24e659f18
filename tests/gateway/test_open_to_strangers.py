"""Warnings at startup if strangers can use the gateway, or if keys can be read on the wire."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from serving.access.callers import Callers
from serving.main import _warn_if_open
from serving.settings import Settings
from tests.doors.credentials import keys_command

TLS = {"tls_certificate": "c.pem", "tls_key": "k.pem"}
HTTP_OPEN = "ANYONE who reaches this machine may use the HTTP API: it listens on 0.0.0.0 and asks for no key."
GRPC_OPEN = "ANYONE who reaches this machine may use the gRPC API: it listens on :: and asks for no key."
BARE = "keys cross the network unencrypted: HTTP listens on 0.0.0.0 without TLS"


@pytest.mark.parametrize(
    ("keys", "values", "told"),
    [
        (False, {}, []),
        (False, {"http_host": "localhost", "grpc_host": "::1"}, []),
        (False, {"http_host": "0.0.0.0"}, [HTTP_OPEN]),
        (False, {"http_host": "0.0.0.0", "grpc_host": "::", **TLS}, [HTTP_OPEN, GRPC_OPEN]),
        (True, {}, []),
        (True, {"http_host": "0.0.0.0"}, [BARE]),
        (True, {"http_host": "0.0.0.0", **TLS}, []),
    ],
)
def test_it_is_told_loudly_for_each_port(
    keys: bool, values: dict[str, Any], told: list[str], tmp_path: Path
) -> None:
    if keys:
        values = {**values, "keys_file": tmp_path / "keys.toml"}
        keys_command("add", "a", f"--file={values['keys_file']}")
    settings = Settings(**values)
    with capture_logs() as lines:
        _warn_if_open(settings, Callers.from_settings(settings))
    assert len(lines) == len(told)
    for line, start in zip(lines, told, strict=True):
        assert line["log_level"] == "warning"
        assert line["event"].startswith(start)

"""Whole runs of a gateway process: nothing of keys, good or bad, or of broken forms is in what it writes."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from serving.access.keys import new_key
from serving.commands.keys import _write
from serving.rest.boundary import Boundary
from serving.telemetry.logs import configure_logging
from tests.doors.replica import ScriptedReplica
from tests.support.http import grey_png
from tests.support.processes import started


async def test_no_secret_is_logged_and_strangers_are_warned_of(
    replica: ScriptedReplica, tmp_path: Path
) -> None:
    key, entry = new_key("camera", ["classify"])
    wrong, _ = new_key("other", ["classify"])
    file = tmp_path / "keys.toml"
    _write(file, [entry])
    arguments = ["gateway", f"--replica={replica.address}", "--model=digits"]
    async with (
        started([*arguments, f"--keys={file}", "--http-host=0.0.0.0"]) as live,
        httpx.AsyncClient(base_url=live.http_url.replace("0.0.0.0", "127.0.0.1")) as client,
    ):
        for headers in ({"authorization": f"Bearer {key}"}, {"x-api-key": wrong}, {"authorization": wrong}):
            await client.post("/v1/classify", content=grey_png(9), headers=headers)
            await client.post("/v1/models/digits:predict", content=b"{", headers=headers)
        bad = file.read_text().replace(entry.hash, key)
        file.write_text(bad)
        while not any("credentials file is invalid" in line for line in live.errors):
            await client.get(f"/v1/models?key={wrong}", headers={"x-api-key": key})
        await live.end()
    written = "\n".join((*live.lines, *live.errors))
    for secret in (key, wrong):
        assert secret not in written
        assert secret.split("_", 2)[2] not in written
    assert "unencrypted" in written
    assert "ANYONE" not in written
    async with started([*arguments, "--http-host=0.0.0.0"]) as live:
        await live.end()
    loud = [line for line in live.errors if "ANYONE who reaches this machine" in line]
    assert len(loud) == 1
    assert "0.0.0.0" in loud[0]


async def test_of_a_broken_form_only_that_there_was_one_is_logged(replica: ScriptedReplica) -> None:
    async with (
        started(["gateway", f"--replica={replica.address}", "--model=digits"]) as live,
        httpx.AsyncClient(base_url=live.http_url) as client,
    ):
        answer = await client.post(
            "/v1/classify",
            content=b"--b\r\nX{: y\r\n\r\n",
            headers={"content-type": "multipart/form-data; boundary=b"},
        )
        assert answer.json()["detail"] == "the multipart form is malformed: Invalid multipart data."
        await live.end()
    assert any('"outcome": "invalid-input"' in line for line in live.errors)
    assert not any("invalid character" in line for line in live.errors)


@pytest.mark.parametrize("terminal", [True, False])
async def test_a_fault_is_logged_with_its_frames_and_without_what_they_hold(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key, _ = new_key("camera", ["classify"])
    image = grey_png(9)

    async def faulty(scope: Any, _receive: Any, _send: Any) -> None:
        credential, body = dict(scope["headers"])[b"x-api-key"], image
        raise RuntimeError(f"{len(credential) + len(body)} bytes, and a fault")

    async def send(message: Any) -> None:
        await asyncio.sleep(0)

    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "path": "/v1/classify",
        "headers": [(b"x-api-key", key.encode()), (b"content-length", b"0")],
    }  # fmt: skip
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    try:
        configure_logging()
        await Boundary(faulty, lambda: False)(scope, asyncio.Future, send)
    finally:
        structlog.reset_defaults()
    written = capsys.readouterr().err
    assert "in faulty" in written if terminal else '"name": "faulty"' in written
    assert "bytes, and a fault" in written
    for secret in (key, key.split("_", 2)[2], "x89PNG"):
        assert secret not in written

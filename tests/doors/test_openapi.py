"""schemathesis over the whole OpenAPI document, all checks, against the live gateway."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx

from tests.doors.conftest import Live

# What the document cannot say: which bytes are an image, which names and tensors there are, how many
# classes a model has (400 and 404), and that a deadline of a nanosecond passes (504).
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "401", "403", "404", "405", "413", "415", "429", "5xx"]
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "504"]
"""
# CI runs a few examples of each operation; `SLUICE_SCHEMATHESIS_EXAMPLES=200` is the long run.
EXAMPLES = os.environ.get("SLUICE_SCHEMATHESIS_EXAMPLES", "2")


def test_schemathesis_finds_nothing(live: Live, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    command = [
        sys.executable,
        "-c",
        "from schemathesis.cli import schemathesis; schemathesis()",
        "run",
        f"{live.http_url}/openapi.json",
        "--checks=all",
        f"--max-examples={EXAMPLES}",
        "--no-color",
        "--seed=1",
        "--generation-database=none",
        "--exclude-path-regex=rollout|feedback",
    ]
    done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"(\d{3,}) generated, \1 passed", done.stdout), done.stdout[-3000:]


def test_every_door_is_in_the_document(live: Live) -> None:
    found = httpx.get(f"{live.http_url}/openapi.json").json()["paths"]
    for path in (
        "/v1/classify",
        "/v1/models/{model}:classify",
        "/v1/models/{model}/labels/{label}:classify",
        "/v1/models/{model}/versions/{version}:predict",
        "/v1/models/{model}:regress",
        "/v1/models/{model}/metadata",
        "/v2/models/{model}/infer",
        "/v2/models/{model}/versions/{version}/config",
        "/v2/repository/index",
    ):
        assert path in found

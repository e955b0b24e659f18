"""schemathesis over the whole OpenAPI document, all checks, against the live gateway."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from serving.access.keys import new_key
from serving.commands.keys import _write
from tests.doors.conftest import Live
from tests.doors.replica import ScriptedReplica
from tests.support.processes import started

# What the document cannot say: which bytes are an image, which names and tensors there are, how many
# classes a model has (400 and 404), which rollout may begin (409), and that a deadline of a nanosecond
# passes (504).
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "401", "403", "404", "405", "409", "413", "415", "429", "5xx"]
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "504"]
[dictionaries.models]
values = ["digits"]
[dictionaries.versions]
values = [1, 2]
[parameters]
"path.model" = {dictionary = "models", probability = 0.6}
"path.version" = {dictionary = "versions", probability = 0.6}
"""
# CI runs a few examples of each operation; `SLUICE_SCHEMATHESIS_EXAMPLES=200` is the long run.
EXAMPLES = os.environ.get("SLUICE_SCHEMATHESIS_EXAMPLES", "2")
ROLLOUTS = "rollout|feedback"


def schemathesis(http_url: str, folder: Path, *more: str) -> None:
    """Run it, all checks; every case must pass."""
    (folder / "schemathesis.toml").write_text(CONFIG)
    command = [
        sys.executable,
        "-c",
        "from schemathesis.cli import schemathesis; schemathesis()",
        "run",
        f"{http_url}/openapi.json",
        "--checks=all",
        f"--max-examples={EXAMPLES}",
        "--no-color",
        "--seed=1",
        "--generation-database=none",
        *more,
    ]
    done = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"(\d{2,}) generated, \1 passed", done.stdout), done.stdout[-3000:]


def test_schemathesis_finds_nothing(live: Live, tmp_path: Path) -> None:
    schemathesis(live.http_url, tmp_path, f"--exclude-path-regex={ROLLOUTS}")


async def test_schemathesis_finds_nothing_in_rollouts_and_feedback(
    replica: ScriptedReplica, tmp_path: Path
) -> None:
    """With an admin's key, over a model with a version that can be let in."""
    replica.versions = {"digits": {1, 2}}
    file = tmp_path / "keys.toml"
    key, entry = new_key("operator", ["admin", "classify"])
    _write(file, [entry])
    arguments = ["gateway", f"--replica={replica.address}", "--model=digits", f"--keys={file}"]
    async with started([*arguments, f"--rollouts={tmp_path / 'store'}"]) as up:
        await asyncio.to_thread(
            schemathesis,
            up.http_url,
            tmp_path,
            f"--include-path-regex={ROLLOUTS}",
            f"--header=Authorization: Bearer {key}",
        )


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


@pytest.mark.parametrize(
    ("path", "taken", "refused"),
    [
        (
            "/v1/models/{model}:predict",
            [{"instances": [1]}, {"inputs": {"a": 1}, "signature_name": "x"}, {"inputs": 1}],
            [{}, {"instances": [1], "inputs": [1]}, {"instances": []}],
        ),
        (
            "/v1/models/{model}:classify",
            [{"images": [{"b64": "aGk="}], "top_k": 2}, {"examples": [{"x": 1}], "context": {"y": 2}}],
            [{}, {"images": [{"b64": "aGk="}], "topk": 2}, {"examples": []}],
        ),
        ("/v1/models/{model}:regress", [{"examples": [{"x": 1}]}], [{}, {"examples": 1}]),
    ],
)
async def test_the_document_has_each_form_of_a_body(
    client: httpx.AsyncClient, path: str, taken: list[Any], refused: list[Any]
) -> None:
    """And a gateway refuses what the document does."""
    document = (await client.get("/openapi.json")).json()
    operation = document["paths"][path]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    validator = jsonschema.Draft202012Validator(schema)
    assert [body for body in taken if not validator.is_valid(body)] == []
    assert [body for body in refused if validator.is_valid(body)] == []
    for body in refused:
        assert (await client.post(path.format(model="digits"), json=body)).status_code == 400


async def test_the_document_has_what_answers_may_hold(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    results = document["components"]["schemas"]["Prediction"]["properties"]["results"]["items"]
    assert {"file", "classes", "error", "prediction_id"} == set(results["properties"])
    logits = jsonschema.Draft202012Validator(results["properties"]["classes"]["items"])
    assert logits.is_valid({"label": "7", "index": 7, "score": -12.5})
    for method, path, status, media in (
        ("post", "/v1/classify", "200", "application/x-ndjson"),
        ("post", "/v2/models/{model}/infer", "200", "application/octet-stream"),
        ("get", "/v1/stacks", "200", "text/plain"),
        ("get", "/metrics", "200", "text/plain"),
        ("get", "/readyz", "503", "application/json"),
    ):
        assert media in document["paths"][path][method]["responses"][status]["content"]
    for path, operations in document["paths"].items():
        if path.startswith(("/v1/models/", "/v2/models/")):
            (operation,) = operations.values()
            assert "X-Request-Timeout" in [each["name"] for each in operation["parameters"]], path

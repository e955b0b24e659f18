"""A live service under load: a model server, a gateway with keys and a rollout, and a real Prometheus.

Used by the tests, and by `python -m tests.observability.pictures`.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
import httpx
import numpy as np
import yaml
from PIL import Image

from k8s.tools import check
from serving import protos
from serving.commands.serve import SAMPLE
from tests.support.ports import free_port
from tests.support.processes import COMMAND

RULES = check.K8S / "components" / "monitoring" / "rules.yaml"
WAIT_S = 120.0
T = TypeVar("T")

# Long steps: what is watched must still go on when a test looks at it.
_MODEL = "/v1/models/digits"
PLAN: Mapping[str, Any] = {
    "shadow": {"share": 1.0, "min_samples": 10, "min_time_s": 1.0, "min_agreement": 0.5},
    "canary": [{"weight": 0.4, "min_time_s": 3600, "min_requests": 10}],
    "criteria": {"latency": {"limit_s": 1.0}, "errors": {"acceptable_rate": 0.05}},
    "limits": {"drain_s": 1.0},
}  # fmt: skip


@dataclass
class Scene:
    """What runs, and what was sent to it.

    Attributes:
        gateway: the gateway's process.
        key: an API key with both scopes.
        sent: how many requests ended how, by protocol and outcome, as the clients counted them.
        loaded_at: Unix time at which Prometheus had seen all of it.
    """

    gateway: subprocess.Popen[bytes]
    http_url: str
    grpc_address: str
    prometheus_url: str
    key: str
    folder: Path
    sent: Counter[tuple[str, str]] = field(default_factory=Counter)
    loaded_at: float = 0.0

    @property
    def headers(self) -> dict[str, str]:
        """Who asks."""
        return {"authorization": f"Bearer {self.key}"}

    def query(self, expression: str, at: float | None = None) -> list[dict[str, Any]]:
        """The series of an expression, at a moment or now."""
        return query(self.prometheus_url, expression, at)

    def value(self, expression: str) -> float:
        """The value of an expression that is one number; 0 without any series."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else 0.0

    def rollout(self) -> dict[str, Any]:
        """The rollout as the gateway tells of it."""
        answer = httpx.get(f"{self.http_url}/v1/rollouts/digits", headers=self.headers, timeout=60)
        found: dict[str, Any] = answer.json()
        return found


def query(prometheus_url: str, expression: str, at: float | None = None) -> list[dict[str, Any]]:
    """The series of an expression in a Prometheus, at a moment or now."""
    params: dict[str, Any] = {"query": expression} | ({} if at is None else {"time": at})
    answer = httpx.get(f"{prometheus_url}/api/v1/query", params=params, timeout=30).json()
    assert answer["status"] == "success", (expression, answer)
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


def until(check_it: Callable[[], T], what: str) -> T:
    """What `check_it` returns once it is true; fails after the deadline."""
    end = time.monotonic() + WAIT_S
    while True:
        found = check_it()
        if found:
            return found
        assert time.monotonic() < end, f"not in {WAIT_S} s: {what}"
        time.sleep(0.1)


@contextmanager
def running(models: Path, folder: Path, load_s: float) -> Iterator[Scene]:
    """The scene, after `load_s` seconds of load; everything ends with the block.

    Args:
        models: a folder with `digits/1`; version 2 is a copy of it.
        folder: where everything else is written.
        load_s: how long the load lasts.
    """
    own = folder / "models"
    shutil.copytree(models / "digits" / "1", own / "digits" / "1")
    with ExitStack() as ends:
        rest_port, replica = _start_model_server(ends, folder, own)
        scene = _start_gateway(ends, folder, own, replica)
        jobs = {
            "gateway": ([scene.http_url.removeprefix("http://")], "/metrics"),
            "model-server": ([f"127.0.0.1:{rest_port}"], "/monitoring/prometheus/metrics"),
        }
        scene.prometheus_url = start_prometheus(ends, folder, jobs)
        until(lambda: _ready(scene), "the gateway is ready")
        until(
            lambda: scene.query("up == 1") and scene.value("count(up == 1)") == 2, "Prometheus scrapes both"
        )
        # Version 2 comes once the gateway has made up its mind that version 1 serves.
        until(lambda: any((folder / "store" / "pinned").iterdir()), "version 1 is pinned")
        shutil.copytree(own / "digits" / "1", own / "digits" / "2")
        started = httpx.post(
            f"{scene.http_url}/v1/rollouts/digits",
            headers=scene.headers,
            json={"to": 2, "plan": dict(PLAN)},
            timeout=60,
        )
        assert started.status_code == 201, started.text
        asyncio.run(_load(scene, load_s))
        total = sum(scene.sent.values())
        until(lambda: scene.value("sum(sluice_requests_total)") >= total, "Prometheus has seen the load")
        scene.loaded_at = time.time()
        yield scene


def _start(ends: ExitStack, command: list[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "TF_NUM_INTRAOP_THREADS": "1", **environment},
        )
    ends.callback(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    finally:
        process.kill()
        process.wait()


def _start_model_server(ends: ExitStack, folder: Path, models: Path) -> tuple[int, str]:
    port, rest_port = free_port(), free_port()
    config = folder / "models.config"
    config.write_text(
        f'model_config_list {{ config {{ name: "digits" base_path: "{models / "digits"}" '
        'model_platform: "tensorflow" model_version_policy { specific { versions: 1 } } } }'
    )
    monitoring = folder / "monitoring.config"
    monitoring.write_text('prometheus_config { enable: true path: "/monitoring/prometheus/metrics" }')
    _start(
        ends,
        [
            *COMMAND,
            "model-server",
            f"--port={port}",
            f"--rest_api_port={rest_port}",
            f"--model_config_file={config}",
            f"--monitoring_config_file={monitoring}",
        ],
        folder / "model-server.log",
    )
    return rest_port, f"127.0.0.1:{port}"


def _start_gateway(ends: ExitStack, folder: Path, models: Path, replica: str) -> Scene:
    keys = folder / "keys.toml"
    made = subprocess.run(
        [*COMMAND, "keys", "add", "tester", "--scope=classify", "--scope=admin", f"--file={keys}"],
        check=True,
        capture_output=True,
        text=True,
    )
    log = folder / "gateway.log"
    process = _start(
        ends,
        [*COMMAND, "gateway", f"--replica={replica}", "--model=digits", "--http-port=0", "--grpc-port=0"],
        log,
        SLUICE_KEYS_FILE=str(keys),
        SLUICE_ROLLOUT_STORE=str(folder / "store"),
        SLUICE_REPLICA_MODELS_DIR=str(models),
    )

    def printed() -> re.Match[str] | None:
        assert process.poll() is None, log.read_text()
        return re.search(r"HTTP\s+(http://\S+)[\s\S]*gRPC\s+(\S+)", log.read_text())

    found = until(printed, "the gateway says where it is")
    assert found is not None
    return Scene(process, found[1], found[2], "", made.stdout.strip(), folder)


def _ready(scene: Scene) -> bool:
    assert scene.gateway.poll() is None, (scene.folder / "gateway.log").read_text()
    return httpx.get(f"{scene.http_url}/readyz", timeout=60).status_code == 200


def write_rules(path: Path) -> Path:
    """The rules of the manifest as Prometheus reads them from a file, evaluated as often as it scrapes."""
    spec = yaml.safe_load(RULES.read_text())["spec"]
    for group in spec["groups"]:
        group.pop("interval", None)
    path.write_text(yaml.safe_dump(spec))
    return path


def start_prometheus(ends: ExitStack, folder: Path, jobs: Mapping[str, tuple[list[str], str]]) -> str:
    """A real Prometheus that scrapes every second, with our rules; where it is.

    Args:
        ends: what ends it.
        folder: where it keeps what it has.
        jobs: by name, the addresses and the path of their metrics.
    """
    port = free_port()
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(write_rules(folder / "rules.yml"))],
        "scrape_configs": [
            {"job_name": name, "metrics_path": path, "static_configs": [{"targets": targets}]}
            for name, (targets, path) in jobs.items()
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    _start(
        ends,
        [
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        folder / "prometheus.log",
    )
    return f"http://127.0.0.1:{port}"


def digits() -> list[bytes]:
    """Images of every digit, as PNG files: scikit-learn's, which the model was trained on."""
    from sklearn.datasets import load_digits

    images, _ = load_digits(return_X_y=True)
    made = []
    for index in range(200):
        pixels = np.clip(images[index].reshape(8, 8) * 16, 0, 255).astype(np.uint8)
        stream = BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        made.append(stream.getvalue())
    return made


async def _load(scene: Scene, load_s: float) -> None:
    """Every kind of request for as long; at least 300 images, so that there is a figure for the drift."""
    until_at = time.monotonic() + load_s
    images = digits()
    async with (
        httpx.AsyncClient(base_url=scene.http_url, timeout=60) as http,
        grpc.aio.insecure_channel(scene.grpc_address) as channel,
        asyncio.TaskGroup() as tasks,
    ):
        for first in range(2):
            tasks.create_task(_post_images(scene, http, images[first::2], until_at))
        tasks.create_task(_post_mistakes(scene, http, until_at))
        tasks.create_task(_call(scene, channel, images, until_at))


async def _post_images(scene: Scene, http: httpx.AsyncClient, images: list[bytes], until_at: float) -> None:
    index = 0
    while time.monotonic() < until_at or index < 200:
        answer = await http.post(
            "/v1/models/digits:classify",
            content=images[index % len(images)],
            headers={**scene.headers, "content-type": "image/png"},
        )
        assert answer.status_code == 200, answer.text
        scene.sent["http", "ok"] += 1
        index += 1
        if index % 10 == 0:
            result = answer.json()["results"][0]
            told = {"prediction_id": result["prediction_id"], "label": result["classes"][0]["label"]}
            await http.post("/v1/feedback", headers=scene.headers, json=told)


async def _post_mistakes(scene: Scene, http: httpx.AsyncClient, until_at: float) -> None:
    png, text = {"content-type": "image/png"}, {"content-type": "text/plain"}
    late = png | {"x-request-timeout": "0.000001"}
    path = "/v1/models/digits:classify"
    mistakes: list[tuple[str, str, dict[str, Any]]] = [
        ("bad-image", path, {"content": b"nonsense", "headers": scene.headers | png}),
        ("not-found", "/v1/models/digit:classify", {"content": b"x", "headers": scene.headers | png}),
        ("unauthenticated", path, {"content": b"x", "headers": png}),
        ("unsupported-media", path, {"content": b"x", "headers": scene.headers | text}),
        ("invalid-input", path, {"content": b"x", "headers": scene.headers | {"x-request-timeout": "soon"}}),
        ("invalid-input", "/v1/models/digits:explain", {"content": b"x", "headers": scene.headers}),
        ("deadline-exceeded", path, {"content": SAMPLE.read_bytes(), "headers": scene.headers | late}),
        ("not-found", f"{_MODEL}/versions/9:predict", {"json": {"instances": [0]}, "headers": scene.headers}),
    ]  # fmt: skip
    while time.monotonic() < until_at:
        for outcome, path, request in mistakes:
            answer = await http.post(path, **request)
            assert answer.status_code >= 400, (outcome, answer.text)
            scene.sent["http", outcome] += 1
        await asyncio.sleep(0.3)


async def _call(scene: Scene, channel: grpc.aio.Channel, images: list[bytes], until_at: float) -> None:
    request, response = protos.methods(protos.IMAGE_CLASSIFICATION)["Classify"]
    classify = channel.unary_unary(
        f"/{protos.IMAGE_CLASSIFICATION}/Classify", request.SerializeToString, response.FromString
    )
    metadata = (("x-api-key", scene.key),)
    while time.monotonic() < until_at:
        for image in images[:20]:
            await classify(protos.ClassifyRequest(model="digits", images=[image]), metadata=metadata)
            scene.sent["grpc", "ok"] += 1
        try:
            await classify(protos.ClassifyRequest(model="digits", images=[]), metadata=metadata)
        except grpc.aio.AioRpcError:
            scene.sent["grpc", "invalid-input"] += 1
        try:
            await classify(protos.ClassifyRequest(model="digits", images=images[:1]))
        except grpc.aio.AioRpcError:
            scene.sent["grpc", "unauthenticated"] += 1


def have_prometheus() -> bool:
    """Whether this machine has the server and promtool."""
    return all(shutil.which(program) for program in ("prometheus", "promtool"))

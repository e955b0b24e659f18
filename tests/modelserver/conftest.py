"""Models built once, and one server that holds them all; others are started where a test must own one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from serving import protos
from tests.modelserver.process import ENDED, ServerProcess


@pytest.fixture(scope="package")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models: half_plus_two, half_plus_two_frozen (both: versions 1–3), half_plus_two_tf1, kinds,
    odd_examples, keras_in_a_module.
    """
    from tests.modelserver import models

    root = tmp_path_factory.mktemp("zoo")
    for version, addend in ((1, 2.0), (2, 3.0), (3, 4.0)):
        models.half_plus_two(root / "half_plus_two" / str(version), addend)
        models.frozen_half_plus_two(root / "half_plus_two_frozen" / str(version), addend)
    models.half_plus_two_tf1(root / "half_plus_two_tf1" / "123")
    models.kinds(root / "kinds" / "1")
    models.odd_examples(root / "odd_examples" / "1")
    models.keras_in_a_module(root / "keras_in_a_module" / "1")
    return root


CONFIG = """
model_config_list {{
  config {{
    name: "half_plus_two" base_path: "{zoo}/half_plus_two" model_platform: "tensorflow"
    model_version_policy {{ specific {{ versions: 1 versions: 2 }} }}
    version_labels {{ key: "stable" value: 1 }}
    version_labels {{ key: "canary" value: 2 }}
  }}
  config {{ name: "half_plus_two_tf1" base_path: "{zoo}/half_plus_two_tf1" model_platform: "tensorflow" }}
  config {{ name: "kinds" base_path: "{zoo}/kinds" model_platform: "tensorflow" }}
  config {{ name: "odd_examples" base_path: "{zoo}/odd_examples" model_platform: "tensorflow" }}
  config {{ name: "keras_in_a_module" base_path: "{zoo}/keras_in_a_module" model_platform: "tensorflow" }}
}}
"""


@pytest.fixture(scope="package")
def server(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server over the whole zoo, with REST, metrics and CORS; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "models.config").write_text(CONFIG.format(zoo=zoo))
    (folder / "monitoring.config").write_text(
        'prometheus_config { enable: true path: "/monitoring/metrics" }'
    )
    process = ServerProcess(
        [
            f"--model_config_file={folder / 'models.config'}",
            "--allow_version_labels_for_unavailable_models",
            f"--monitoring_config_file={folder / 'monitoring.config'}",
            "--rest_api_enable_cors_support=true",
            "--enable_grpc_healthcheck_service=true",
            "--grpc_max_threads=64",
        ],
        folder / "log",
        has_rest=True,
    )
    try:
        yield process.wait_ready()
    finally:
        status = process.stop()
    assert status in ENDED, process.log_text()[-3000:]


StartServer = Callable[..., ServerProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartServer]:
    """Start servers that end with the test: `start("--flag=…", has_rest=True)`."""
    started: list[ServerProcess] = []

    def start_one(*flags: str, has_rest: bool = False) -> ServerProcess:
        log = tmp_path / f"server-{len(started)}.log"
        started.append(ServerProcess(flags, log, has_rest=has_rest))
        return started[-1]

    yield start_one
    for process in started:
        process.channel.close()
        if process.process.poll() is None:
            process.process.kill()
            process.process.wait()


def config_of(*models: Mapping[str, Any]) -> object:
    """A `ModelServerConfig` of these models; each a dict of `ModelConfig`'s fields."""
    config = protos.ModelServerConfig()
    for model in models:
        config.model_config_list.config.add(model_platform="tensorflow", **model)
    return config

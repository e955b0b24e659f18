"""What the gateway costs: no TensorFlow, little memory, and none that each request is given anew."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import psutil
import pytest

from serving import protos, tensors
from tests.support.fake_replica import FakeReplica, running
from tests.support.processes import started_gateway

MAX_RSS_BYTES = 110 * 2**20
CALLS = 50
# Each page of a tensor of 600 kB makes 150; with each of its copies mapped anew it was 1,170.
MOST_FAULTS_A_CALL = 300


def loaded_by(modules: str) -> set[str]:
    """The packages that are loaded once the command line is built and these modules are imported."""
    program = f"""
import json, sys
import {modules}, serving.commands.app
serving.commands.app.build()
print(json.dumps([name.split(".")[0] for name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return set(json.loads(done.stdout))


def test_importing_the_gateway_imports_no_tensorflow_and_no_training() -> None:
    loaded = loaded_by("serving.cli, serving.main")
    assert {"serving", "fastapi", "grpc"} <= loaded
    assert not {"tensorflow", "keras", "tensorflow_serving", "sklearn", "matplotlib"} & loaded


def test_a_command_imports_nothing_for_the_others() -> None:
    """They import what they need when they run, so that `sluice --help` answers at once."""
    loaded = loaded_by("serving.cli")
    assert {"serving", "training", "typer"} <= loaded
    assert not {"asyncio", "fastapi", "grpc", "httpx", "limits", "numpy", "pydantic", "structlog"} & loaded


async def test_a_running_gateway_is_small() -> None:
    async with running(FakeReplica()) as fake, started_gateway(fake.address, "digits") as process:
        memory = psutil.Process(process.pid).memory_info()
        print(f"ready after {process.ready_after_s:.2f} s, RSS {memory.rss / 2**20:.0f} MB")
        assert memory.rss < MAX_RSS_BYTES


def page_faults(pid: int) -> int:
    """How often a process was given a page of memory that it had not: `minflt` of proc(5)."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc's settings are glibc's")
async def test_what_one_call_frees_serves_the_next() -> None:
    request = protos.PredictRequest(model_spec={"name": "digits"})
    request.inputs["images"].CopyFrom(tensors.to_proto(np.zeros((200, 32, 32, 3), np.uint8)))
    async with (
        running(FakeReplica(shape=(32, 32, 3))) as fake,
        started_gateway(fake.address, "digits") as gateway,
        grpc.aio.insecure_channel(gateway.grpc_address) as channel,
    ):
        predict: Any = channel.unary_unary(
            f"/{protos.PREDICTION_SERVICE}/Predict",
            request_serializer=protos.PredictRequest.SerializeToString,
        )
        await predict(request)
        before = page_faults(gateway.pid)
        for _ in range(CALLS):
            await predict(request)
        assert page_faults(gateway.pid) - before < MOST_FAULTS_A_CALL * CALLS

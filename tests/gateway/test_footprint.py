"""What the gateway costs before the first request: no TensorFlow, little memory."""

from __future__ import annotations

import json
import subprocess
import sys

import psutil

from tests.support.fake_replica import FakeReplica, running
from tests.support.processes import started_gateway

MAX_RSS_BYTES = 110 * 2**20


def test_importing_the_gateway_imports_no_tensorflow_and_no_training() -> None:
    program = """
import json, sys
import serving.cli, serving.commands.serve, serving.main
serving.cli.build()
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    loaded = set(json.loads(done.stdout))
    assert {"serving", "fastapi", "grpc"} <= loaded
    assert not {"tensorflow", "keras", "tensorflow_serving", "sklearn", "matplotlib"} & loaded


async def test_a_running_gateway_is_small() -> None:
    async with running(FakeReplica()) as fake, started_gateway(fake.address, "digits") as process:
        memory = psutil.Process(process.pid).memory_info()
        print(f"ready after {process.ready_after_s:.2f} s, RSS {memory.rss / 2**20:.0f} MB")
        assert memory.rss < MAX_RSS_BYTES

"""What gRPC is told by way of the environment, as separate processes hear it: it is read once in each."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

EXPERIMENTS = "-event_engine_client,-event_engine_listener"


def python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run some code in an environment that tells gRPC nothing but `variables`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    return subprocess.run(
        [sys.executable, "-c", code], env=inherited | variables, capture_output=True, text=True, check=True
    )


@pytest.mark.parametrize("module", ["serving.cli", "serving.modelserver.__main__"])
def test_programs_prepare_it(module: str) -> None:
    code = f"""
import contextlib, os, runpy, sys
import {module}
assert "grpc" not in sys.modules  # it would have read what is set only now
del sys.modules[{module!r}]
sys.argv[1:] = ["--version"]
with contextlib.suppress(SystemExit):
    runpy.run_module({module!r}, run_name="__main__")
print(os.environ["GRPC_EXPERIMENTS"])
"""
    assert python(code).stdout.splitlines()[-1] == EXPERIMENTS


def test_what_the_user_has_set_stays() -> None:
    code = "from serving import grpc_environment as it; it.prepare(); import os; print(os.environ)"
    done = python(code, GRPC_EXPERIMENTS="", GRPC_VERBOSITY="INFO")
    assert "'GRPC_EXPERIMENTS': ''" in done.stdout
    assert "'GRPC_VERBOSITY': 'INFO'" in done.stdout


def test_the_client_leaves_a_users_program_alone() -> None:
    done = python("import serving.client, os; print([name for name in os.environ if name[:5] == 'GRPC_'])")
    assert done.stdout == "[]\n"


def test_grpc_knows_all_that_it_is_told() -> None:
    """An experiment ends with some release of gRPC, which then says at each start that it knows none."""
    serve = """
from concurrent.futures import ThreadPoolExecutor
from serving import grpc_environment
grpc_environment.prepare()
import grpc
server = grpc.server(ThreadPoolExecutor(1))
server.add_insecure_port("127.0.0.1:0")
server.start()
server.stop(0).wait()
"""
    assert python(serve).stderr == ""
    assert "Unknown experiment: no_such" in python(serve, GRPC_EXPERIMENTS="-no_such").stderr

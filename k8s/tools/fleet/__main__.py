"""Run a fleet on this machine, and see what its clients see while it suffers.

    python -m k8s.tools.fleet [--models models] [--seconds 120] [--clients 32]

Three gateways and three model servers, each on a host of its own (a network namespace), one store, DNS and a
Service's address as in a cluster. Under load, one after the other: a model server is killed and comes back, a
gateway is drained and comes back, the path from a gateway to a model server is cut for 10 s, and a new
version is published and let in by a rollout, to its end. Exits 1 if a client with the Python client's retries
sees a failure, or more than 0.1 % of the attempts fail.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import uvloop

from k8s.tools.fleet import network
from k8s.tools.fleet.cluster import DnsServer, Endpoints, ServiceAddress
from k8s.tools.fleet.load import Seen, clients
from serving.rollout.machine import Phase
from serving.rollout.plan import Plan
from serving.rollout.start import start
from serving.rollout.store import FileStore

REPOSITORY = Path(__file__).resolve().parents[3]
GATEWAYS = {f"gateway-{number}": f"10.99.0.1{number}" for number in (1, 2, 3)}
MODEL_SERVERS = {f"models-{number}": f"10.99.0.2{number}" for number in (1, 2, 3)}
MODEL = "digits"
START_TIMEOUT_S = 120.0
PRE_STOP_S = 3.0
AWAY_S = 3.0
CUT_S = 10.0
MOST_FAILED_PERCENT = 0.1
ROLLOUT_TIMEOUT_S = 180.0
# Short, and without a judgement of latency: the clients, the gateways and the replicas share two cores here.
PLAN = Plan.model_validate(
    {
        "shadow": {"share": 0.2, "min_samples": 100, "min_time_s": 3},
        "canary": [{"weight": 0.1, "min_time_s": 3}, {"weight": 0.5, "min_time_s": 3}],
        "criteria": {"errors": {"acceptable_rate": 0.02}, "latency": None, "accuracy": None},
        "limits": {"drain_s": 2},
    }
)


class Fleet:
    """The processes on the hosts, and the little of a cluster that is around them."""

    def __init__(self, store: Path, logs: Path) -> None:
        self._store = store
        self.rollouts = store / ".rollouts"
        self._logs = logs
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.gateways = Endpoints(GATEWAYS.values(), 8080, "/readyz")
        self.model_servers = Endpoints(MODEL_SERVERS.values(), 8500, None)

    def start(self, host: str) -> None:
        """Start the host's program."""
        with (self._logs / f"{host}.log").open("ab") as log:
            self._processes[host] = subprocess.Popen(
                network.inside(host, self._command(host)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._environment(host)},
            )

    def _command(self, host: str) -> list[str]:
        program = [str(Path(sys.executable).with_name("sluice"))]
        if host in GATEWAYS:
            return [*program, "gateway"]
        return [
            *program, "model-server", "--port=8500", f"--model_name={MODEL}",
            f"--model_base_path={self._store / MODEL}", "--file_system_poll_wait_seconds=1",
            "--tensorflow_intra_op_parallelism=1", "--tensorflow_inter_op_parallelism=1",
        ]  # fmt: skip

    def _environment(self, host: str) -> dict[str, str]:
        """The gateway's settings are those of the manifests, on a machine that is much smaller."""
        if host not in GATEWAYS:
            return {"TF_CPP_MIN_LOG_LEVEL": "3"}
        lines = (REPOSITORY / "k8s/base/gateway/gateway.env").read_text().splitlines()
        settings = dict(line.split("=", 1) for line in lines if "=" in line)
        return settings | {
            "SLUICE_HTTP_HOST": "0.0.0.0",  # noqa: S104 - of a namespace that only this machine reaches
            "SLUICE_DECODE_THREADS": "1",
            "SLUICE_ROLLOUT_STORE": str(self.rollouts),
            "SLUICE_REPLICA_MODELS_DIR": str(self._store),
        }

    def kill(self, host: str) -> None:
        """SIGKILL the host's program."""
        self._processes[host].kill()
        self._processes.pop(host).wait()

    async def drain(self, host: str) -> float:
        """End a gateway as Kubernetes ends a pod; returns how long the program took after SIGTERM."""
        self.gateways.terminate(GATEWAYS[host])
        await asyncio.sleep(PRE_STOP_S)
        process = self._processes.pop(host)
        process.terminate()
        began = time.monotonic()
        code = await asyncio.to_thread(process.wait)
        if code:
            raise RuntimeError(f"{host} ended with {code} as it was drained")
        self.gateways.terminating.discard(GATEWAYS[host])
        return time.monotonic() - began

    def publish(self) -> int:
        """Publish what is in the store once more, as the next version, by one rename."""
        versions = sorted(int(each.name) for each in (self._store / MODEL).iterdir() if each.name.isdecimal())
        staging = self._store / ".staging"
        shutil.copytree(self._store / MODEL / str(versions[-1]), staging)
        staging.rename(self._store / MODEL / str(versions[-1] + 1))
        return versions[-1] + 1

    def stop(self) -> None:
        """End everything that was started."""
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    @contextlib.asynccontextmanager
    async def up(self) -> AsyncIterator[str]:
        """The fleet, ready, while the block runs; gives the URL of the gateways' Service."""
        loop = asyncio.get_running_loop()
        dns, _ = await loop.create_datagram_endpoint(
            lambda: DnsServer("model-servers", lambda: self.model_servers.ready),
            local_addr=(network.HUB_ADDRESS, 53),
        )
        service = ServiceAddress(self.gateways, random.Random(1))
        server = await asyncio.start_server(service.serve, network.HUB_ADDRESS, 80)
        watching = [asyncio.create_task(each.watch()) for each in (self.gateways, self.model_servers)]
        try:
            for host in (*MODEL_SERVERS, *GATEWAYS):
                self.start(host)
            async with asyncio.timeout(START_TIMEOUT_S):
                await self.model_servers.all_ready(len(MODEL_SERVERS))
                await self.gateways.all_ready(len(GATEWAYS))
            yield f"http://{network.HUB_ADDRESS}"
        finally:
            for task in watching:
                task.cancel()
            server.close()
            dns.close()
            self.stop()


async def suffer(fleet: Fleet, seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """What happens to the fleet, spread over `seconds`; returns what was measured on the way."""
    facts: dict[str, Any] = {}
    pause_s = max(seconds / 5 - 6, 2.0)
    await asyncio.sleep(pause_s)
    say("models-1 is killed")
    fleet.kill("models-1")
    await asyncio.sleep(AWAY_S)
    fleet.start("models-1")
    began = time.monotonic()
    await fleet.model_servers.all_ready(len(MODEL_SERVERS))
    facts["model_server_back_s"] = round(time.monotonic() - began, 1)
    say(f"models-1 is back after {facts['model_server_back_s']} s")
    await asyncio.sleep(pause_s)
    say("gateway-1 is drained")
    facts["gateway_drained_s"] = round(await fleet.drain("gateway-1"), 2)
    await asyncio.sleep(AWAY_S)
    fleet.start("gateway-1")
    await fleet.gateways.all_ready(len(GATEWAYS))
    say("gateway-1 is back")
    await asyncio.sleep(pause_s)
    say(f"the path from gateway-2 to models-3 is cut for {CUT_S:g} s")
    network.cut("gateway-2", MODEL_SERVERS["models-3"])
    await asyncio.sleep(CUT_S)
    network.mend("gateway-2", MODEL_SERVERS["models-3"])
    say("the path is mended")
    await asyncio.sleep(pause_s)
    version = fleet.publish()
    say(f"version {version} is published; its rollout starts")
    began = time.monotonic()
    await _roll_out(FileStore(fleet.rollouts), version, say)
    facts["rollout_s"] = round(time.monotonic() - began, 1)
    await asyncio.sleep(pause_s)
    return facts


async def _roll_out(store: FileStore, version: int, say: Callable[[str], None]) -> None:
    """Let `version` in; RuntimeError if it is not promoted."""
    start(store, MODEL, version, PLAN, time.time())
    last = ""
    async with asyncio.timeout(ROLLOUT_TIMEOUT_S):
        while True:
            rollout = store.load(MODEL)
            assert rollout is not None
            state = rollout.state
            where = f"{state.phase.value} {state.step}" if state.phase is Phase.CANARY else state.phase.value
            if where != last:
                say(f"the rollout is at {where}: {state.reason.text}")
                last = where
            if rollout.finished:
                break
            await asyncio.sleep(0.1)
    if state.phase is not Phase.PROMOTED:
        raise RuntimeError(f"the rollout ended as {state.phase.value}: {state.reason.text}")


async def run(store: Path, logs: Path, seconds: float, count: int) -> dict[str, Any]:
    """The whole run; returns the figures."""
    fleet, seen = Fleet(store, logs), Seen()
    image = (REPOSITORY / "serving/samples/seven.png").read_bytes()
    async with fleet.up() as url:
        started = time.monotonic()

        def say(text: str) -> None:
            print(f"{time.monotonic() - started:6.1f} s  {text}", flush=True)

        say("3 gateways and 3 model servers are ready")
        events = asyncio.create_task(suffer(fleet, seconds, say))
        load = clients(
            url, count, image, MODEL, seen, lambda: events.done() and time.monotonic() - started >= seconds
        )
        await asyncio.gather(load, events)
        return {
            "clients": count,
            "seconds": round(time.monotonic() - started, 1),
            **seen.report(),
            **events.result(),
        }


def main() -> None:
    """Make the hosts, and run what is above from within the hub; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder with the model digits")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "build/fleet")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        figures = uvloop.run(run(options.inside, options.out, options.seconds, options.clients))
        _conclude(figures, options.out)
        return
    reason = network.missing()
    if reason:
        print(f"skipped: {reason}")
        return
    if not any((options.models / MODEL).glob("[0-9]*")):
        sys.exit(
            f"error: {options.models}/{MODEL} holds no version; train one: sluice train resnet --data {MODEL}"
        )
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    with (
        tempfile.TemporaryDirectory(prefix="sluice-fleet-") as folder,
        network.network(GATEWAYS | MODEL_SERVERS),
    ):
        store = Path(folder)
        newest = max((options.models / MODEL).glob("[0-9]*"), key=lambda each: int(each.name))
        shutil.copytree(newest, store / MODEL / newest.name)
        arguments = ["--inside", folder, "--seconds", f"{options.seconds}", "--clients", f"{options.clients}"]
        program = [sys.executable, "-m", "k8s.tools.fleet", *arguments, "--out", str(options.out.resolve())]
        sys.exit(subprocess.run(network.inside("hub", program), cwd=REPOSITORY, check=False).returncode)


def _conclude(figures: dict[str, Any], out: Path) -> None:
    (out / "fleet.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))
    if figures["failed_with_retries"]:
        sys.exit("error: clients with retries saw failures")
    if figures["failed_attempts_percent"] >= MOST_FAILED_PERCENT:
        sys.exit(f"error: {figures['failed_attempts_percent']} % of the attempts failed")


if __name__ == "__main__":
    main()

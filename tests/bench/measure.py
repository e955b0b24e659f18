"""One model under every load, round after round."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from tests.bench import ceilings, load, promises, report
from tests.bench.load import Load
from tests.bench.report import clients
from tests.bench.servers import cpu_s, gateway, memory_mb, process, running, settle
from tests.bench.setting import SUBJECTS, Contestant, Plan, Setting, setting

SIZES = [1, 8, 16, 32]
PEER_CLIENTS = (1, 8, 32)


class Round:
    """Collects what each load and part does in one round."""

    def __init__(self) -> None:
        self.loads: dict[str, Load] = {}
        self.parts: dict[str, list[float]] = {}

    def load(self, name: str, found: Load) -> None:
        """A load."""
        self.loads[name] = found
        print(
            f"  {name:<44}{found.per_s:9.1f}/s  p50 {found.p50_ms:7.1f}  p99 {found.p99_ms:7.1f} ms", end=""
        )
        print(f"  {found.failed} FAILED" if found.failed else "", flush=True)

    def part(self, name: str, value: float) -> None:
        """A measurement of a part; there may be several."""
        self.parts.setdefault(name, []).append(value)
        print(f"  {name:<44}{value:9.3f}", flush=True)


def measure(model: str, plan: Plan) -> dict[str, Any]:
    """A summary of the model, as bench.json has it."""
    rounds, seconds = [], plan.seconds * SUBJECTS[model].longer
    with setting(model, plan) as at:
        for name in list(at.contestants):
            try:
                post(at, at.contestants[name], 32, seconds / 2)  # warms caches, and learns what a batch takes
            except load.NoAnswer as error:
                give_up(at, name, f"no answers: {error}")
        for number in range(plan.rounds):
            print(f"{model}, round {number + 1} of {plan.rounds}", flush=True)
            rounds.append(measure_round(at, plan, seconds))
        memory = {name: memory_mb(pid) for name, pid in at.pids.items()}
    return summary(model, rounds, at) | {"memory_mb": memory}


def measure_round(at: Setting, plan: Plan, seconds: float) -> Round:
    """Everything once."""
    found = Round()
    measure_parts(found, at, plan, seconds)
    measure_photographs(found, at, seconds)
    measure_tensors(found, at, seconds)
    if at.model == "resnet20":
        measure_half_load(found, at, seconds)
        measure_fast_replica(found, at, seconds)
    return found


def summary(model: str, rounds: Sequence[Round], at: Setting) -> dict[str, Any]:
    """Medians; and the lines of what must be shown, each the median of what the rounds show."""
    small = model == "resnet20"
    lines = []
    for each in rounds:
        loads, parts = report.medians([each.loads]), report.parts([each.parts])
        if small:
            lines.append(promises.small_model(loads, parts, ceilings.CORES))
        else:
            lines.append(promises.large_model(loads, parts, at.subject.rows))
    parts = report.parts([each.parts for each in rounds])
    return {
        "measured": datetime.now(UTC).isoformat(timespec="minutes"),
        "cores": ceilings.CORES,
        "clients": at.subject.clients,
        "loads": report.medians([each.loads for each in rounds]),
        "parts": parts,
        "failed_peers": at.failed_peers,
        "ceiling": str(promises.ceiling(parts, ceilings.CORES)) if small else "",
        "lines": promises.as_table(promises.medians(lines)),
    }


def post(at: Setting, contestant: Contestant, count: int, seconds: float) -> Load:
    """Photographs to one server, which is held before and after."""
    with running(contestant.pid) if contestant.held else contextlib.nullcontext():
        found = at.subject.post(contestant.url, contestant.requests, clients=count, seconds=seconds)
        settle(contestant.pid)
    return found


def measure_parts(into: Round, at: Setting, plan: Plan, seconds: float) -> None:
    """Decode, HTTP, a gRPC call and the model, each alone."""
    side, rows = at.subject.side, at.subject.rows
    per_s, alone_ms = ceilings.decode_per_s(plan.images, side, plan.seconds / 2)
    into.part("decode, all cores (images/s)", per_s)
    into.part("decode, one image alone (ms)", alone_ms)
    port, pid = at.empty_post
    for count in (1, 32):
        used = cpu_s(pid)
        found = load.post_photos(
            f"http://127.0.0.1:{port}/", at.jpeg, clients=count, seconds=plan.seconds / 2
        )
        used = cpu_s(pid) - used
        into.load(f"empty POST, {clients(count)}", found)
    into.part("empty POST, server (core-ms)", used * 1e3 / found.answers)
    into.part("empty POST, wrk (core-ms)", found.client_ms)
    port, pid = at.empty_predict
    used = cpu_s(pid)
    found = load.call_predict(
        f"127.0.0.1:{port}", "model", rows=rows, side=side, clients=2, seconds=plan.seconds / 2
    )
    server_ms = (cpu_s(pid) - used) * 1e3 / found.answers
    into.part("gRPC call with a batch (core-ms an image)", server_ms + found.client_ms)
    for size in SIZES:
        measure_in_process(into, at, size, seconds / 2)
    alone_per_s = at.in_process.calls_per_s(1, callers=1, seconds=seconds / 2)
    into.part("model in process, one image alone (ms)", 1e3 / alone_per_s)


def measure_in_process(into: Round, at: Setting, size: int, seconds: float) -> None:
    """The model alone, with a caller for each core."""
    per_s = at.in_process.calls_per_s(size, callers=ceilings.CORES, seconds=seconds)
    into.part(f"model in process, batch {size} (images/s)", size * per_s)


def measure_photographs(into: Round, at: Setting, seconds: float) -> None:
    """Photographs to every server, over HTTP; and to Sluice over gRPC."""
    for count in at.subject.clients:
        for name in [name for name in at.contestants if count in PEER_CLIENTS or name == "Sluice"]:
            try:
                into.load(f"{name}, {clients(count)}", post(at, at.contestants[name], count, seconds))
            except load.NoAnswer as error:
                give_up(at, name, f"no answers with {clients(count)}: {error}")
        found = load.classify_photos(
            at.grpc["Sluice"], at.model, at.jpeg.folder, clients=count, seconds=seconds
        )
        into.load(f"Sluice over gRPC, {clients(count)}", found)


def give_up(at: Setting, name: str, reason: str) -> None:
    """Leave a peer out from here on; Sluice's own failure ends the run."""
    if name == "Sluice":
        raise RuntimeError(f"Sluice gave {reason}")
    del at.contestants[name]
    at.failed_peers[name] = reason
    print(f"{name}: NOT MEASURED, {reason}", flush=True)


def measure_tensors(into: Round, at: Setting, seconds: float) -> None:
    """Predict over gRPC, straight and through the gateway, as fast as goes; and the model in process again,
    since the machine may have changed its pace."""
    rows, side = at.subject.rows, at.subject.side
    found = load.compare_predict(
        at.grpc,
        at.model,
        rows=rows,
        side=side,
        seconds=seconds,
        clients=2 * ceilings.CORES,
        turn_s=at.subject.longer**2,
    )
    for name, each in found.items():
        into.load(f"{name}, tensors of {rows}", each)
    measure_in_process(into, at, rows, seconds / 2)


def measure_half_load(into: Round, at: Setting, seconds: float) -> None:
    """Predict over gRPC, straight and through the gateway, at half of what goes straight: one image a call,
    and a batch."""
    side = at.subject.side
    for rows in (1, 32):
        most = load.call_predict(
            at.grpc["direct"], at.model, rows=rows, side=side, clients=2, seconds=seconds / 4
        )
        found = load.compare_predict(
            at.grpc, at.model, rows=rows, side=side, seconds=seconds, calls_per_s=most.per_s / rows / 2
        )
        for name, each in found.items():
            into.load(f"{name}, half load, {rows}", each)


def measure_fast_replica(into: Round, at: Setting, seconds: float) -> None:
    """The gateway in front of a replica that answers a batch in 5 ms: HTTP and decode are all there is."""
    with (
        process("-m", "tests.bench.ceilings", "fast-replica", str(at.subject.side)) as (port, _),
        gateway(f"127.0.0.1:{port}", "model") as (url, _, _),
    ):
        target = f"{url}/v1/models/model:classify"
        load.post_photos(target, at.jpeg, clients=64, seconds=1)
        found = load.post_photos(target, at.jpeg, clients=64, seconds=seconds)
        into.load("Sluice, fast replica, 64 clients", found)

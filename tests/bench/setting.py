"""What runs while a model is measured: servers, started one after the other and held until their turn."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.bench import load, photos
from tests.bench.load import Load
from tests.bench.peers.launcher import Peer, PeerFailed, serving
from tests.bench.servers import REPOSITORY, InProcess, gateway, hold, process


@dataclass(frozen=True)
class Subject:
    """A model, and how it is measured.

    Attributes:
        side: of its images, in pixels.
        clients: so many at a time.
        rows: of a call with tensors.
        longer: by what its loads last longer than those of a fast model.
        post: what makes the load over HTTP.
    """

    side: int
    clients: tuple[int, ...]
    rows: int
    longer: float
    post: Callable[..., Load]


SUBJECTS = {
    "resnet20": Subject(32, (1, 8, 32, 128), 32, 1.0, load.post_photos),
    "resnet50": Subject(224, (1, 8, 32), 8, 2.0, load.post_photos_slowly),
}


@dataclass(frozen=True)
class Plan:
    """What to do: so many rounds of so many seconds a load, beside these peers, with these photographs, in a
    folder for files."""

    rounds: int
    seconds: float
    peers: list[Peer]
    images: list[bytes]
    work: Path


class Contestant(NamedTuple):
    """A server that takes photographs over HTTP; `held` unless it is its turn."""

    url: str
    requests: photos.Requests
    pid: int
    held: bool = True


@dataclass(frozen=True)
class Setting:
    """All that runs while a model is measured."""

    model: str
    subject: Subject
    in_process: InProcess
    jpeg: photos.Requests
    contestants: dict[str, Contestant]
    grpc: dict[str, str]
    empty_post: tuple[str, int]
    empty_predict: tuple[str, int]
    pids: dict[str, int]
    failed_peers: dict[str, str]


def start_peers(
    stack: contextlib.ExitStack, plan: Plan, folder: Path, side: int
) -> tuple[dict[str, Contestant], dict[str, str]]:
    """Those that came up, held; and why others did not."""
    contestants, failed = {}, {}
    for peer in plan.peers:
        requests = photos.write(plan.images, plan.work / peer.stem, peer.form)
        try:
            url, pid = stack.enter_context(serving(peer, folder, side, requests))
            contestants[peer.name] = Contestant(url, requests, pid)
            hold(pid)
        except PeerFailed as error:
            failed[peer.name] = str(error)
            print(f"{peer.name}: NOT MEASURED, {error}", flush=True)
    return contestants, failed


@contextlib.contextmanager
def setting(model: str, plan: Plan) -> Iterator[Setting]:
    """Start it all; peers that do not come up are told of in `failed_peers`."""
    subject, folder, path = SUBJECTS[model], plan.work / model / "1", plan.work / f"{model}.sock"
    export = [sys.executable, "-m", "tests.bench.model_server", "--export", model, str(folder)]
    subprocess.run(export, check=True, capture_output=True, cwd=REPOSITORY)
    flags = [f"--model_name={model}", f"--model_base_path={folder.parent}", f"--grpc_socket_path={path}"]
    jpeg = photos.write(plan.images, plan.work / "jpeg")
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        contestants, failed = start_peers(stack, plan, folder, subject.side)
        in_process = InProcess(folder, subject.side)
        stack.callback(in_process.close)
        port, pid = enter(
            process("-m", "tests.bench.fastapi_baseline", str(folder), str(subject.side), pattern=r"^(\d+)$")
        )
        contestants["hand-written FastAPI"] = Contestant(f"http://127.0.0.1:{port}/classify", jpeg, pid)
        hold(pid)
        _, server_pid = enter(process("-m", "tests.bench.quiet_server", *flags, "--port=0"))
        url, grpc_address, pid = enter(gateway(f"unix:{path}", model))
        sluice = Contestant(f"{url}/v1/models/{model}:classify", jpeg, pid, held=False)
        yield Setting(
            model,
            subject,
            in_process,
            jpeg,
            {"Sluice": sluice, **contestants},
            {"direct": f"unix:{path}", "Sluice": grpc_address},
            enter(process("-m", "tests.bench.ceilings", "empty-post")),
            enter(process("-m", "tests.bench.ceilings", "empty-predict", str(subject.rows))),
            {"gateway": pid, "model server": server_pid}
            | {name: contestant.pid for name, contestant in contestants.items()},
            failed,
        )

"""Peers: installed on first use, started, found to answer, ended."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import sysconfig
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench import photos
from tests.bench.servers import REPOSITORY, end, until
from tests.support.ports import free_port

VENVS = REPOSITORY / "build" / "bench" / "venvs"
INSTALL_TIMEOUT_S = 900.0


class PeerFailed(Exception):
    """A peer that cannot be installed or does not answer; the text says why."""


@dataclass(frozen=True)
class Peer:
    """One of them.

    Attributes:
        name: as its makers write it.
        stem: of its files here and its virtual environment.
        path: where it takes photographs.
        form: how it takes them.
    """

    name: str
    stem: str
    path: str
    form: Callable[[bytes], tuple[bytes, dict[str, str]]]


PEERS = {
    each.stem: each
    for each in (
        Peer("LitServe", "litserve", "/predict", photos.as_form("photo")),
        Peer("BentoML", "bentoml", "/classify", photos.as_form("photos")),
        Peer("KServe", "kserve", "/v1/models/resnet:predict", photos.as_jpeg),
        Peer("PyTriton", "pytriton", "/v2/models/resnet/infer", photos.as_triton),
    )
}


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise PeerFailed(f"not installed: {command[-1]} took over {INSTALL_TIMEOUT_S:g} s") from None
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise PeerFailed(f"not installed: {(errors or done.stderr.splitlines() or ['no message'])[-1]}")


def installed(peer: Peer, venvs: Path = VENVS) -> Path:
    """The Python of its virtual environment, which is made if it is not there, or not by these versions.

    Raises:
        PeerFailed: it cannot be installed.
    """
    wanted = Path(__file__).with_name(f"{peer.stem}.txt")
    folder = venvs / peer.stem
    marker, python = folder / "installed.txt", folder / "bin" / "python"
    if not (marker.exists() and marker.read_text() == wanted.read_text()):
        print(f"installing {peer.name} into {folder}", flush=True)
        _run(sys.executable, "-m", "venv", "--clear", str(folder))
        _run(str(python), "-m", "pip", "install", "-q", "--no-deps", "-r", str(wanted))
        marker.write_text(wanted.read_text())
    own = sysconfig.get_path("purelib", vars={"base": str(folder)})
    Path(own, "zz-project.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def _answers(url: str, requests: photos.Requests) -> bool:
    body = (requests.folder / "0").read_bytes()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, body, requests.headers), timeout=10
        ) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def serving(
    peer: Peer, folder: Path, side: int, requests: photos.Requests, venvs: Path = VENVS
) -> Iterator[tuple[str, int]]:
    """A peer that serves a SavedModel while the block runs: its URL, and its pid, once it has answered.

    Raises:
        PeerFailed: it cannot be installed, or does not come up.
    """
    python, port, log = installed(peer, venvs), free_port(), venvs / f"{peer.stem}.log"
    url = f"http://127.0.0.1:{port}{peer.path}"
    # PyTriton's back end looks for the interpreter's library, which may be none of the system's.
    environment = {**os.environ, "LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR"))}
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "PATH": f"{python.parent}:{os.environ['PATH']}"}
    command = [str(python), "-m", f"tests.bench.peers.{peer.stem}_server", str(folder), str(side), str(port)]
    with log.open("w") as output:
        child = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=output, stderr=output)
    try:
        try:
            until(lambda: child.poll() is not None or _answers(url, requests), peer.name)
        except TimeoutError as error:
            raise PeerFailed(f"{error}; see {log}") from None
        if child.poll() is not None:
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip(" ;")]
            raise PeerFailed(f"ended with code {child.returncode}: {lines[-1] if lines else 'no message'}")
        yield url, child.pid
    finally:
        end(child.pid)
        child.wait()

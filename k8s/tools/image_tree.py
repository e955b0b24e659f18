"""Build the file tree of the gateway's image without an engine, measure it, and start the gateway from it.

    python k8s/tools/image_tree.py [--out build/image] [--limit-mb 250] [--no-base]

The same steps as in the Dockerfile: the builder's packages in a virtualenv, then `install_tree.sh`. The
base, `distroless/python3-debian12`, is made of Debian 12's own packages, and where they can be had (apt on
Debian 12) they are unpacked beneath the tree and the gateway is started inside it, as user 65532, by the
base's Python. Elsewhere it is started by this machine's Python 3.11, and the size leaves the base out;
what is printed says which.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGE_USER = 65532
START_TIMEOUT_S = 60.0

# The packages of gcr.io/distroless/python3-debian12, by its build files.
BASE_PACKAGES = (
    "base-files", "netbase", "tzdata", "ca-certificates", "media-types", "libc6", "libssl3", "libgcc-s1",
    "libgomp1", "libstdc++6", "libpython3-stdlib", "libpython3.11-minimal", "libpython3.11-stdlib",
    "python3.11-minimal", "python3-minimal", "python3-distutils", "libbz2-1.0", "libcom-err2", "libcrypt1",
    "libdb5.3", "libexpat1", "libffi8", "libgssapi-krb5-2", "libk5crypto3", "libkeyutils1", "libkrb5-3",
    "libkrb5support0", "liblzma5", "libncursesw6", "libnsl2", "libreadline8", "libsqlite3-0", "libtinfo6",
    "libtirpc3", "libuuid1", "zlib1g",
)  # fmt: skip


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    """Run a command to its end; its failure ends this program."""
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=env, check=False)
    if done.returncode:
        sys.exit(f"error: {' '.join(map(str, command))} ended with {done.returncode}")


def stage_sources(target: Path) -> None:
    """Copy what the Dockerfile copies."""
    for name in ("protos", "serving", "training"):
        shutil.copytree(REPOSITORY / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "requirements/gateway.txt", "requirements/image.txt"):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if (REPOSITORY / name).exists():
            shutil.copy(REPOSITORY / name, target / name)


def unpack_base(root: Path, cache: Path) -> bool:
    """Unpack the base's Debian packages into `root`; False where apt does not offer them."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return False
    release = Path("/etc/os-release").read_text()
    if "VERSION_CODENAME=bookworm" not in release:
        return False
    cache.mkdir(parents=True, exist_ok=True)
    if not list(cache.glob("*.deb")):
        # apt drops its rights in the cache folder, and says so; that is no fault.
        command = ["apt-get", "download", "-q", *BASE_PACKAGES]
        if subprocess.run(command, cwd=cache, check=False, capture_output=True).returncode:
            return False
    for package in sorted(cache.glob("*.deb")):
        run("dpkg-deb", "-x", package, root)
    for useless in ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian"):
        shutil.rmtree(root / useless, ignore_errors=True)
    if not (root / "bin").exists():
        (root / "bin").symlink_to("usr/bin")
    return True


def build(out: Path, *, with_base: bool) -> tuple[Path, bool]:
    """Build the tree; returns its root and whether the base is beneath it."""
    root, sources, tools = out / "gateway", out / "sources", out / "tools"
    for old in (root, sources):
        shutil.rmtree(old, ignore_errors=True)
    root.mkdir(parents=True)
    stage_sources(sources)
    if not (tools / "bin/python3").exists():
        run(sys.executable, "-m", "venv", tools)
    python_first = {**os.environ, "PATH": f"{tools / 'bin'}:{os.environ['PATH']}"}
    python_first |= {"PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": "1735689600"}
    run(
        tools / "bin/python3", "-m", "pip", "install", "-qq", "--disable-pip-version-check",
        "--require-hashes", "--requirement", sources / "requirements/image.txt",
    )  # fmt: skip
    has_base = with_base and unpack_base(root, out / "debs")
    run(REPOSITORY / "k8s/tools/install_tree.sh", "gateway", root, cwd=sources, env=python_first)
    return root, has_base


def size_mb(folder: Path) -> float:
    """The bytes of a folder's files, in MB (10^6), each file once."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files) / 1e6


def start_command(root: Path, *, has_base: bool) -> list[str]:
    """The command that starts the gateway from the tree, inside it where that is possible."""
    gateway = ["/opt/sluice/bin/sluice", "gateway", "--replica", "127.0.0.1:9", "--model", "none"]
    chroot = shutil.which("chroot")
    if has_base and os.geteuid() == 0 and chroot:
        return [chroot, f"--userspec={IMAGE_USER}:{IMAGE_USER}", str(root), *gateway]
    return [sys.executable, "-S", str(root / gateway[0].lstrip("/")), *gateway[1:]]


def free_port() -> int:
    """A port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_and_measure(root: Path, *, has_base: bool) -> dict[str, Any]:
    """Start the gateway from the tree, wait for its health, read its memory, end it."""
    command = start_command(root, has_base=has_base)
    inside = Path(command[0]).name == "chroot"
    port = free_port()
    env = {
        "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1", "SLUICE_HTTP_PORT": str(port),
        "SLUICE_GRPC_PORT": "0", "PYTHONPATH": "/opt/sluice/lib" if inside else str(root / "opt/sluice/lib"),
    }  # fmt: skip
    if inside and not (root / "dev/urandom").exists():
        (root / "dev").mkdir(exist_ok=True)
        run("mknod", "-m", "666", root / "dev/urandom", "c", "1", "9")
        run("mknod", "-m", "666", root / "dev/null", "c", "1", "3")
    started = time.monotonic()
    process = subprocess.Popen(command, env={**os.environ, **env} if not inside else env)
    try:
        start_s = _await_health(process, port, started)
        status = Path(f"/proc/{process.pid}/status").read_text()
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        ready = _status_of(f"http://127.0.0.1:{port}/readyz")
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=30)
    rss_kb = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return {
        "started_inside_the_tree": inside, "start_s": round(start_s, 2), "rss_mb": round(rss_kb / 1e3, 1),
        "tensorflow_mapped": "tensorflow" in maps, "readyz_without_replica": ready, "exit_on_sigterm": code,
    }  # fmt: skip


def _await_health(process: subprocess.Popen[bytes], port: int, started: float) -> float:
    while time.monotonic() - started < START_TIMEOUT_S:
        if process.poll() is not None:
            sys.exit(f"error: the gateway ended with {process.returncode} as it started from the tree")
        if _status_of(f"http://127.0.0.1:{port}/healthz") == 200:
            return time.monotonic() - started
        time.sleep(0.02)
    sys.exit(f"error: the gateway did not answer within {START_TIMEOUT_S:g} s")


def _status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - http, and on this machine
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def main() -> None:
    """Build, measure, start; write the figures to `<out>/gateway.json` and exit 1 if one is out of bounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=REPOSITORY / "build/image")
    parser.add_argument("--limit-mb", type=float, default=250.0, help="largest size of the whole tree")
    parser.add_argument("--no-base", action="store_true", help="leave the base's packages out")
    options = parser.parse_args()
    root, has_base = build(options.out.resolve(), with_base=not options.no_base)
    whole, own = size_mb(root), size_mb(root / "opt/sluice")
    forbidden = sorted(
        path.name for path in (root / "opt/sluice/lib").iterdir() if path.name in ("tensorflow", "keras")
    )
    figures = {"size_mb": round(whole, 1), "own_mb": round(own, 1), "base_included": has_base,
               "tensorflow_in_tree": forbidden}  # fmt: skip
    figures |= start_and_measure(root, has_base=has_base)
    (options.out / "gateway.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))
    if forbidden or figures["tensorflow_mapped"]:
        sys.exit("error: TensorFlow is in the gateway's tree")
    if whole > options.limit_mb:
        sys.exit(f"error: the tree holds {whole:.1f} MB; {options.limit_mb:g} MB is the limit")


if __name__ == "__main__":
    main()

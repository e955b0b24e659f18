"""Hosts with their own addresses on one machine: network namespaces on a bridge, by iproute2. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "sluice-fleet-"
HUB = PREFIX + "hub"
HUB_ADDRESS = "10.99.0.1"
# `ip netns exec` lays what is here over /etc for the programs that it starts.
_ETC = Path("/etc/netns")
# No host has this address: frames to it go nowhere, and nobody says so.
_NOBODY = "02:00:00:00:de:ad"


def missing() -> str | None:
    """What this machine lacks for a fleet; None if nothing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "ip (iproute2) is not installed"
    probe = PREFIX + "probe"
    done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"this kernel makes no network namespace: {done.stderr.strip()}"
    ip("netns", "del", probe)
    return None


def ip(*arguments: str) -> None:
    """Run `ip`; raises CalledProcessError."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def inside(host: str, command: Iterable[str]) -> list[str]:
    """The command that runs `command` on a host; `ip` becomes the program, in the same process."""
    return ["ip", "netns", "exec", PREFIX + host, *command]


@contextmanager
def network(hosts: Mapping[str, str]) -> Iterator[None]:
    """Hosts (name -> IPv4 address) while the block runs, on a bridge whose own host is the hub."""
    try:
        _remove(hosts)  # left by one that was killed
        ip("netns", "add", HUB)
        ip("-n", HUB, "link", "set", "lo", "up")
        ip("-n", HUB, "link", "add", "bridge", "type", "bridge")
        ip("-n", HUB, "address", "add", f"{HUB_ADDRESS}/24", "dev", "bridge")
        ip("-n", HUB, "link", "set", "bridge", "up")
        for host, address in hosts.items():
            _add(host, address)
        yield
    finally:
        _remove(hosts)


def _add(host: str, address: str) -> None:
    namespace = PREFIX + host
    ip("netns", "add", namespace)
    ip("-n", HUB, "link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", namespace)
    ip("-n", HUB, "link", "set", host, "master", "bridge", "up")
    ip("-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        ip("-n", namespace, "link", "set", device, "up")
    folder = _ETC / namespace
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "resolv.conf").write_text(f"nameserver {HUB_ADDRESS}\noptions timeout:1 attempts:2\n")


def _remove(hosts: Iterable[str]) -> None:
    for namespace in (*(PREFIX + host for host in hosts), HUB):
        with suppress(subprocess.CalledProcessError):
            ip("netns", "del", namespace)
        shutil.rmtree(_ETC / namespace, ignore_errors=True)


def cut(host: str, address: str) -> None:
    """Lose everything that `host` sends to `address`, silently, until `mend`."""
    ip("-n", PREFIX + host, "neigh", "replace", address, "lladdr", _NOBODY, "nud", "permanent", "dev", "eth0")


def mend(host: str, address: str) -> None:
    """Undo `cut`."""
    ip("-n", PREFIX + host, "neigh", "del", address, "dev", "eth0")

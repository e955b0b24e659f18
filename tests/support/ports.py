"""Ports for servers that must be told one."""

from __future__ import annotations

import random
import socket

# Below what Linux gives to whoever asks for any port (ip_local_port_range): those are taken and given back
# all the time, by other tests too, and a server that loads for seconds first would find its own gone.
_FIRST, _END = 20_000, 32_000
_ANY = random.SystemRandom()  # `random` itself has one seed for all processes of a test run


def free_port() -> int:
    """A TCP port that nothing uses, nor is likely to use before long."""
    while True:
        port = _ANY.randrange(_FIRST, _END)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        return port

"""Whether a TCP port can be had, asked before gRPC is, which tells only its log why it cannot have one."""

from __future__ import annotations

import errno
import socket

from serving.errors import InvalidInput


def check(host: str, port: int, *, shared: bool = False) -> None:
    """Return if a server could listen there now. Nothing is bound when this returns.

    Args:
        host: the address, or a name.
        port: the port; 0 is any free one.
        shared: whether other processes that share it, too, may have it already (SO_REUSEPORT).

    Raises:
        OSError: it could not; `strerror` says why.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if shared else socket.SO_REUSEADDR, 1)
        probe.bind(address)


def refusal(protocol: str, host: str, port: int, error: OSError) -> InvalidInput:
    """What to raise where the gateway cannot listen for `HTTP` or `gRPC`: why, and what would do."""
    taken = error.errno == errno.EADDRINUSE
    hint = f"; --{protocol.lower()}-port names another, 0 any free one" if taken else ""
    return InvalidInput(f"cannot listen on {host}:{port} for {protocol}: {error.strerror}{hint}")

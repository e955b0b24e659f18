"""Checks whether a TCP port is available before gRPC binds it: gRPC tells only its log why it cannot."""

from __future__ import annotations

import errno
import socket

from serving.errors import InvalidInput


def check(host: str, port: int, *, shared: bool = False) -> None:
    """Return if a server could listen there now; nothing stays bound.

    Args:
        host: an address or a host name.
        port: the port; 0 stands for any free one.
        shared: whether other processes that share it (SO_REUSEPORT) may have bound it already.

    Raises:
        OSError: it could not listen; `strerror` says why.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if shared else socket.SO_REUSEADDR, 1)
        probe.bind(address)


def refusal(protocol: str, host: str, port: int, error: OSError) -> InvalidInput:
    """The error for when the gateway cannot listen for `HTTP` or `gRPC`; says why, and what to do instead."""
    taken = error.errno == errno.EADDRINUSE
    hint = f"; --{protocol.lower()}-port names another, 0 any free one" if taken else ""
    return InvalidInput(f"cannot listen on {host}:{port} for {protocol}: {error.strerror}{hint}")

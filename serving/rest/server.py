"""The HTTP server: uvicorn, started and ended by the composition root."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from serving import ports
from serving.certificates import Certificates
from serving.rest.connection import Connection
from serving.rest.unread import Unread
from serving.settings import Settings

BACKLOG = 2048
# How long an idle connection stays open once the listener has closed: long enough for a request that its
# client sent before it could know.
IDLE_GRACE_S = 1.0
_TICK_S = 0.02
_DATE_S = 1.0  # the resolution of an answer's date
# A client that reads nothing for this long has gone, or wants the gateway to hold its answers in memory.
UNREAD_TIMEOUT_S = 30.0


def listen(
    host: str, port: int, *, shared: bool = False, unread_timeout_s: float = UNREAD_TIMEOUT_S
) -> socket.socket:
    """A listening socket; several processes may listen on a port that is shared.

    Args:
        host: the address.
        port: the port; 0 takes any free one.
        shared: whether other processes may listen on it, too.
        unread_timeout_s: a client that reads nothing of its answer for this long is cut off.

    Raises:
        InvalidInput: the port is in use, or the host is not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio asks, for TCP_NODELAY
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if shared else socket.SO_REUSEADDR, 1)
    # Connections inherit it (RFC 5482; on Linux it holds for a window that stays closed, too).
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(unread_timeout_s * 1000))
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ports.refusal("HTTP", host, port, error) from error
    return listener


class HttpServer(uvicorn.Server):
    """Serves `app` on a listening socket that the caller has opened.

    Args:
        app: the app.
        settings: times.
        certificates: for HTTPS; None: plain HTTP.
        unread: where answers are counted that wait to be read.
    """

    def __init__(
        self, app: ASGIApp, settings: Settings, certificates: Certificates | None, unread: Unread
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app, loop="none", ws="none", lifespan="off", log_config=None,
                http=functools.partial(Connection, settings=settings, unread=unread),  # type: ignore[arg-type]
                access_log=False, backlog=BACKLOG, server_header=False, proxy_headers=False,
                timeout_keep_alive=settings.idle_timeout_s,  # type: ignore[arg-type]  # an int, it says
                ssl_context_factory=None if certificates is None else lambda *_: certificates.for_http(),
            )
        )  # fmt: skip
        self._drain_timeout_s = settings.drain_timeout_s
        self._is_drained = asyncio.Event()
        self._has_tls = certificates is not None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: the composition root decides what they mean."""
        yield

    async def main_loop(self) -> None:
        """Keep the date of answers right, and end once drained; uvicorn's own wakes up ten times a second."""
        while not self.should_exit:
            await self.on_tick(0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DATE_S):
                    await self._is_drained.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End, at once if no connection is left; uvicorn gives them a tenth of a second to close.

        Over TLS a connection is not seen before its handshake is over: the tenth is for those.
        """
        if self.server_state.connections or self.server_state.tasks or self._has_tls:
            await super().shutdown(sockets)
            return
        for each in (*self.servers, *(sockets or ())):
            each.close()

    async def drain(self, listener: socket.socket) -> None:
        """Stop accepting, wait for requests in flight and for clients that are about to send, then end.

        Whatever is left after `settings.drain_timeout_s` is cut.

        Args:
            listener: the socket that it serves on.
        """
        await _take_in(listener)
        for server in self.servers:
            server.close()
        started = time.monotonic()
        busy = started
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_timeout_s):
                while self.server_state.connections and time.monotonic() - busy < IDLE_GRACE_S:
                    if self.server_state.tasks:
                        busy = time.monotonic()
                    await asyncio.sleep(_TICK_S)
        left_s = self._drain_timeout_s - (time.monotonic() - started)
        self.config.timeout_graceful_shutdown = max(1, round(left_s))
        self.should_exit = True
        self._is_drained.set()


async def _take_in(listener: socket.socket) -> None:
    """Have the event loop accept those who have connected already, then refuse others.

    The kernel has told these clients that they are connected; closing the listener would reset them.
    """
    pending = select.poll()
    pending.register(listener, select.POLLIN)
    latest = time.monotonic() + IDLE_GRACE_S
    quiet = 0  # turns of the loop: asyncio's own takes one to accept, and two to set up the connection
    while quiet < 4 and time.monotonic() < latest:
        await asyncio.sleep(0)
        quiet = 0 if pending.poll(0) else quiet + 1
    listener.shutdown(socket.SHUT_RDWR)  # at once, where closing takes a turn of the loop

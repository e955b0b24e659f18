"""What a cluster does around pods, small: readiness, DNS of a headless Service, a Service's address."""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import cast

PROBE_INTERVAL_S = 1.0
PROBE_TIMEOUT_S = 1.0
FAILURES_TO_UNREADY = 2
_TTL_S = 5
_QUESTION_A, _CLASS_IN = 1, 1


@dataclass
class Endpoints:
    """The ready pods of one Service, as its probes find them.

    Attributes:
        addresses: the IPv4 addresses of the pods, all of the same port.
        path: what to GET; None: that the port can be connected to is enough.
        terminating: pods that were asked to end: never ready, whatever they answer.
    """

    addresses: Collection[str]
    port: int
    path: str | None
    ready: set[str] = field(default_factory=set)
    terminating: set[str] = field(default_factory=set)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def watch(self) -> None:
        """Probe every pod, for ever."""
        await asyncio.gather(*(self._watch_one(address) for address in self.addresses))

    async def _watch_one(self, address: str) -> None:
        failures = 0
        while True:
            is_well = await probe(address, self.port, self.path)
            failures = 0 if is_well else failures + 1
            if address in self.terminating or failures >= FAILURES_TO_UNREADY:
                self.ready.discard(address)
            elif is_well and address not in self.ready:
                self.ready.add(address)
                self._changed.set()
                self._changed = asyncio.Event()
            await asyncio.sleep(PROBE_INTERVAL_S)

    def terminate(self, address: str) -> None:
        """The pod is about to end: it is taken out at once."""
        self.terminating.add(address)
        self.ready.discard(address)

    async def all_ready(self, count: int) -> None:
        """Wait until `count` pods are ready."""
        while len(self.ready) < count:
            await self._changed.wait()


async def probe(address: str, port: int, path: str | None) -> bool:
    """Whether the port can be connected to and, with a path, answers 200."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(address, port)
            try:
                if path is None:
                    return True
                writer.write(f"GET {path} HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n".encode())
                return (await reader.readline()).split()[1:2] == [b"200"]
            finally:
                writer.close()
    except OSError:
        return False


class DnsServer(asyncio.DatagramProtocol):
    """Answers for one name with the addresses that are ready, for every other with NXDOMAIN (RFC 1035)."""

    def __init__(self, name: str, addresses: Callable[[], Collection[str]]) -> None:
        self._name = name
        self._addresses = addresses
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the socket to answer on."""
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answer one question."""
        assert self._transport is not None
        self._transport.sendto(answer(data, self._name, sorted(self._addresses())), addr)


def answer(query: bytes, name: str, addresses: Collection[str]) -> bytes:
    """The response to a query with one question."""
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode("ascii", "replace"))
        at += 1 + query[at]
    (kind,) = struct.unpack_from("!H", query, at + 1)
    is_known = ".".join(labels).lower() == name
    given = addresses if is_known and kind == _QUESTION_A else ()
    flags = 0x8580 | (0 if is_known else 3)  # a response, authoritative, recursion as asked; 3: NXDOMAIN
    header = query[:2] + struct.pack("!HHHHH", flags, 1, len(given), 0, 0)
    records = b"".join(
        struct.pack("!HHHIH4B", 0xC00C, _QUESTION_A, _CLASS_IN, _TTL_S, 4, *map(int, address.split(".")))
        for address in given
    )
    return header + query[12 : at + 5] + records


class ServiceAddress:
    """Hands each new connection to a random ready pod, as kube-proxy does."""

    def __init__(self, endpoints: Endpoints, rng: random.Random) -> None:
        self._endpoints = endpoints
        self._rng = rng

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection to its end."""
        ready = sorted(self._endpoints.ready)
        try:
            if ready:
                pod = await asyncio.open_connection(self._rng.choice(ready), self._endpoints.port)
                await asyncio.gather(_copy(reader, pod[1]), _copy(pod[0], writer))
        except OSError:
            pass  # the client sees its connection end, as with a Service whose pod is gone
        finally:
            writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy one direction to its end, and end the other side's reading with it."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()

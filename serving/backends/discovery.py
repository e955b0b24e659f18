"""Service discovery: follows a DNS name whose addresses are the replicas, as they come and go.

A headless Service of Kubernetes is such a name: it resolves to one address for each ready pod. An address
`dns:HOST:PORT` among the replicas stands for every address that HOST has at the moment. The name is
resolved again every few seconds, which is as long as Kubernetes' DNS lets an answer live; the C library
keeps no cache, so every look sees what the name server knows.

A name server that fails, or that says that there is no such name, changes nothing: replicas that are gone
are noticed by their silence, and healthy replicas must not be lost to a sick name server. An address is let
go once it has been missing from `ABSENT_ROUNDS` good answers in a row, since a name server that restarts may
give part of an answer.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import structlog

from serving.backends.pool import Pool
from serving.backends.replica import Replica
from serving.errors import InvalidInput

_log = structlog.get_logger()

SCHEME = "dns:"
ABSENT_ROUNDS = 2
# A name server that says nothing for this long gets a line in the log; a later answer is used all the same.
RESOLVE_TIMEOUT_S = 5.0


class Name(NamedTuple):
    """A name in DNS whose addresses are replicas, and the port of their gRPC API."""

    host: str
    port: int


class Changes(NamedTuple):
    """What `Followed.see` found: addresses to add to the pool, and addresses to let go."""

    joined: list[str]
    left: list[str]


def split(replicas: Iterable[str]) -> tuple[list[str], list[Name]]:
    """Fixed addresses, and names to follow, each once.

    Raises:
        InvalidInput: an address is none of `HOST:PORT`, `unix:PATH` and `dns:HOST:PORT`.
    """
    fixed: list[str] = []
    names: list[Name] = []
    for address in dict.fromkeys(replicas):
        if address.startswith(SCHEME):
            names.append(_parted(address, address.removeprefix(SCHEME), "dns:HOST:PORT"))
            continue
        if not address.startswith("unix:"):
            _parted(address, address, "HOST:PORT, such as localhost:8500, or unix:PATH")
        fixed.append(address)
    return fixed, names


def _parted(address: str, text: str, form: str) -> Name:
    host, _, port = text.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InvalidInput(f'replica "{address}" is not of the form {form}')
    return Name(host, int(port))


@dataclass(slots=True)
class Followed:
    """What is known of one name: each current address -> how many answers in a row lacked it."""

    missed: dict[str, int] = field(default_factory=dict)

    def see(self, answer: Collection[str]) -> Changes:
        """Take in one good answer of the name server; an empty one says nothing about any replica."""
        if not answer:
            return Changes([], [])
        joined = sorted(set(answer) - self.missed.keys())
        for address in self.missed:
            self.missed[address] = 0 if address in answer else self.missed[address] + 1
        left = sorted(address for address, rounds in self.missed.items() if rounds >= ABSENT_ROUNDS)
        for address in left:
            del self.missed[address]
        self.missed.update(dict.fromkeys(joined, 0))
        return Changes(joined, left)


Resolve = Callable[[Name], Awaitable[Collection[str]]]
"""Gives the addresses of a name as `IP:PORT`; raises OSError if the name server cannot tell."""


async def resolve(name: Name) -> set[str]:
    """The addresses of a name by the system's resolver, as gRPC takes them; raises OSError."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(name.host, name.port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # no server would be asked for such a name
        raise OSError(str(error)) from error
    return {_address(str(each[4][0]), name.port) for each in found}


def _address(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


class Discovery:
    """Keeps a pool's replicas in step with names in DNS.

    Args:
        pool: the pool; replicas that it has by fixed addresses are left alone. An address that several
            names have is one replica, and leaves with the last of them.
        names: the names to follow.
        connect: makes a replica of an address.
        resolve: what asks the name server.
        timeout_s: how long an answer is waited for at each look.
    """

    def __init__(
        self,
        pool: Pool,
        names: Sequence[Name],
        connect: Callable[[str], Replica],
        resolve: Resolve = resolve,
        timeout_s: float = RESOLVE_TIMEOUT_S,
    ) -> None:
        self._pool = pool
        self._connect = connect
        self._resolve = resolve
        self._followed: Mapping[Name, Followed] = {name: Followed() for name in names}
        self._fixed = frozenset(replica.address for replica in pool.replicas)
        self._timeout_s = timeout_s
        self._failing: set[Name] = set()
        self._asking: dict[Name, asyncio.Future[Collection[str]]] = {}

    async def watch(self, interval_s: float) -> None:
        """Look every `interval_s` seconds, for ever; without a name to follow there is nothing to do."""
        try:
            while self._followed:
                await self.look()
                await asyncio.sleep(interval_s)
        finally:
            for asking in self._asking.values():
                asking.cancel()

    async def look(self) -> None:
        """Resolve every name once, and change the pool accordingly."""
        await asyncio.gather(*(self._look_at(name, known) for name, known in self._followed.items()))

    async def _look_at(self, name: Name, known: Followed) -> None:
        try:
            answer = await self._answer(name)
        except OSError as error:
            if name not in self._failing:
                _log.warning("a name cannot be resolved; its replicas stay as they are", name=name.host,
                             error=str(error) or "no answer in time")  # fmt: skip
            self._failing.add(name)
            return
        self._failing.discard(name)
        changes = known.see(answer)
        others = (each.missed for each in self._followed.values() if each is not known)
        elsewhere = self._fixed.union(*others)
        for address in changes.joined:
            if address not in elsewhere:
                _log.info("a replica joins", replica=address, name=name.host)
                self._pool.join(self._connect(address))
        for address in changes.left:
            if address not in elsewhere:
                _log.info("a replica leaves", replica=address, name=name.host)
                self._pool.leave(address)

    async def _answer(self, name: Name) -> Collection[str]:
        """What the name server says. Only one question about a name is open at a time.

        Each question takes one of the threads that the whole gateway shares, and the C library cannot be told
        to give up: questions to a server that hangs must not use them up.
        """
        asking = self._asking.get(name)
        if asking is None:
            asking = self._asking[name] = asyncio.ensure_future(self._resolve(name))
        done, _ = await asyncio.wait((asking,), timeout=self._timeout_s)
        if not done:
            raise TimeoutError
        del self._asking[name]
        return asking.result()

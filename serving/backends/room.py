"""How many calls a replica is given at once, and the calls that wait until one has room.

TensorFlow Serving answers a call that finds all its threads busy, four per core by default, with
RESOURCE_EXHAUSTED, "Server Threadpool Exhausted"; one that finds the queue of its batching full, with
UNAVAILABLE and a text that says so. How many calls it takes, and how many of these other gateways leave, is
learned from these refusals, with additive increase (Chiu and Jain, "Analysis of the Increase and Decrease
Algorithms for Congestion Avoidance in Computer Networks", 1989); the decrease needs no guess, since a refusal
tells the number: what was in flight besides the refused call. Further calls wait here, in order, instead of
being refused there.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

FIRST = 64  # what a server of 16 cores takes; a smaller one says so at once
MOST = 256
# Once the replica has refused a call the limit grows ten times more slowly: one call in a hundred, or fewer,
# is refused in finding out whether there is more room by now.
_CAREFUL = 0.1


class Room:
    """A replica's room for calls.

    Attributes:
        limit: how many calls it is given at once; grows by fractions.
        taken: the places that are taken.
    """

    def __init__(self) -> None:
        self.limit = float(FIRST)
        self.taken = 0
        self._step = 1.0

    @property
    def free(self) -> bool:
        """Whether one more call may be made."""
        return self.taken + 1 <= self.limit

    def take(self) -> None:
        """Take a place."""
        self.taken += 1

    def release(self) -> None:
        """Give a place back."""
        self.taken -= 1

    def answered(self) -> None:
        """A call, which still has its place, was answered: if there was no free place, there may be more."""
        if not self.free:
            self.limit = min(float(MOST), self.limit + self._step / self.limit)

    def refused(self) -> None:
        """A call, which still has its place, was one too many."""
        self.limit = max(1.0, min(self.limit, self.taken - 1.0))
        self._step = _CAREFUL


class HasRoom(Protocol):
    """A replica, as far as places go."""

    @property
    def room(self) -> Room:
        """Its room."""


Host = TypeVar("Host", bound=HasRoom)


@dataclass(eq=False, slots=True)
class _Waiter(Generic[Host]):
    find: Callable[[], Collection[Host]]
    hosts: Collection[Host]
    place: asyncio.Future[Host | None]


class Waiting(Generic[Host]):
    """Calls that wait for a place: first come, first served, among those that the same replica can serve."""

    def __init__(self) -> None:
        self._waiters: deque[_Waiter[Host]] = deque()

    def __len__(self) -> int:
        return len(self._waiters)

    async def place(
        self, find: Callable[[], Collection[Host]], left_s: float, *, ahead: bool = False
    ) -> Host | None:
        """Wait for a place while all suitable replicas are full; it is taken when this returns.

        Args:
            find: finds the suitable replicas, now and whenever that may have changed.
            left_s: how long to wait, in seconds.
            ahead: whether to go before those that wait already.

        Returns:
            The replica; None if none had a place in time, or no suitable one is left.
        """
        waiter: _Waiter[Host] = _Waiter(find, find(), asyncio.get_running_loop().create_future())
        (self._waiters.appendleft if ahead else self._waiters.append)(waiter)
        try:
            await asyncio.wait([waiter.place], timeout=max(left_s, 0.0))
        except asyncio.CancelledError:
            if not waiter.place.done():
                self._waiters.remove(waiter)
            elif (host := waiter.place.result()) is not None:
                self.leave(host)
            raise
        if not waiter.place.done():
            self._waiters.remove(waiter)
            return None
        return waiter.place.result()

    def leave(self, host: Host) -> None:
        """Give back a place at a replica, to the first that waits for one there."""
        host.room.release()
        while host.room.free:
            waiter = next((each for each in self._waiters if host in each.hosts), None)
            if waiter is None:
                return
            self._give(waiter, host)

    def look_again(self) -> None:
        """Replicas may have come or gone: who waits gets a place at a new one, or hears that none is left."""
        for waiter in list(self._waiters):
            waiter.hosts = waiter.find()
            free = next((host for host in waiter.hosts if host.room.free), None)
            if free is not None or not waiter.hosts:
                self._give(waiter, free)

    def _give(self, waiter: _Waiter[Host], host: Host | None) -> None:
        self._waiters.remove(waiter)
        if host is not None:
            host.room.take()
        waiter.place.set_result(host)

"""A queue in which callers take turns: one who floods it waits behind itself, not ahead of the others."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class TurnQueue(Generic[Item]):
    """First come, first served within one caller, and the callers one after the other.

    Round robin over a queue for each source, after Nagle, "On Packet Switches With Infinite Storage"
    (RFC 970, 1985). With one caller it is a plain queue, and costs about as much.
    """

    __slots__ = ("_length", "_lines")

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[Item]] = OrderedDict()  # whose turn is next comes first
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, caller: str, item: Item) -> None:
        """Queue an item behind this caller's others."""
        line = self._lines.get(caller)
        if line is None:
            line = self._lines[caller] = deque()
        line.append(item)
        self._length += 1

    def first(self) -> Item:
        """What `popleft` would take; raises StopIteration if the queue is empty."""
        return next(iter(self._lines.values()))[0]

    def popleft(self) -> Item:
        """Take the next item of the caller whose turn it is."""
        caller, line = next(iter(self._lines.items()))
        item = line.popleft()
        self._length -= 1
        if not line:
            del self._lines[caller]
        elif len(self._lines) > 1:
            self._lines.move_to_end(caller)
        return item

    def keep(self, wanted: Callable[[Item], bool]) -> None:
        """Take out what is no longer wanted; a caller with nothing left loses its turn."""
        for caller, line in list(self._lines.items()):
            kept = deque(filter(wanted, line))
            self._length -= len(line) - len(kept)
            if kept:
                self._lines[caller] = kept
            else:
                del self._lines[caller]

    def ahead_of(self, caller: str) -> int:
        """How many items leave, at most, before one that this caller would append now."""
        own = len(self._lines.get(caller, ()))
        return sum(min(len(line), own + 1) for line in self._lines.values())

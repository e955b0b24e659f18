"""Who holds how much of a limited resource, and who may have more. Pure.

A part is reserved for callers who hold less than an equal share, so that one who floods the gateway finds it
full before the others do. What nobody else wants is free to all: over time the shares become max-min fair
(Bertsekas & Gallager, "Data Networks", 1992, 6.5.2), and a caller alone can use nearly everything.
"""

from __future__ import annotations


class Shares:
    """Places, or bytes, by who holds them.

    Attributes:
        total: how much is held.
    """

    __slots__ = ("_held", "total")

    def __init__(self) -> None:
        self._held: dict[str, int] = {}
        self.total = 0

    def held(self, caller: str) -> int:
        """How much this caller holds."""
        return self._held.get(caller, 0)

    def fits(self, caller: str, amount: int, limit: int, reserve: int = 0) -> bool:
        """Whether a caller may have this much more.

        Args:
            caller: who asks.
            amount: for how much.
            limit: what all may hold together.
            reserve: how much there is beyond that, for callers whose part stays within an equal share of
                `limit`.
        """
        after = self.total + amount
        if after <= limit:
            return True
        if after > limit + reserve:
            return False
        callers = len(self._held) + (caller not in self._held)
        return (self.held(caller) + amount) * callers <= limit

    def take(self, caller: str, amount: int = 1) -> None:
        """A caller holds this much more from now on."""
        if not amount:  # a caller who holds nothing must not count when an equal share is worked out
            return
        self._held[caller] = self.held(caller) + amount
        self.total += amount

    def give_back(self, caller: str, amount: int = 1) -> None:
        """A caller holds this much less."""
        self.total -= amount
        left = self._held[caller] - amount
        if left:
            self._held[caller] = left
        else:
            del self._held[caller]

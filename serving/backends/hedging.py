"""A second call where the first takes unusually long: the first good answer wins, the other is cancelled.

After Dean and Barroso, "The Tail at Scale" (CACM 56(2), 2013): a hedge that waits for the 95th percentile
adds about one call in twenty, and takes most of the tail away where one replica is slow and others are not.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

Answer = TypeVar("Answer")

QUANTILE = 0.95
# How far one latency moves the estimate, as a share of it: up by a fifth, or down by a hundredth. It settles
# within some twenty calls, but from a first one that was ten times too slow (it compiled, say) within 230.
_STEP = 0.2
# Before so many calls there is no percentile to speak of.
_LEAST_CALLS = 20
# Beyond this many, the kind of which a call was made longest ago is forgotten.
_MOST_KINDS = 1024


@dataclass(slots=True)
class _Quantile:
    """A running quantile, by stochastic approximation (Robbins and Monro, 1951): mostly down, else far up."""

    value_s: float
    calls: int = 1

    def add(self, latency_s: float) -> None:
        self.calls += 1
        above = latency_s > self.value_s
        self.value_s *= 1.0 + _STEP * (QUANTILE if above else QUANTILE - 1.0)


class HedgeTimes:
    """After how long a call is unusually late: the 95th percentile of its kind, such as of its batch size."""

    def __init__(self) -> None:
        self._of: OrderedDict[Hashable, _Quantile] = OrderedDict()  # the latest call's comes last

    def learn(self, kind: Hashable, latency_s: float) -> None:
        """A call of this kind took so long, hedged or not."""
        found = self._of.get(kind)
        if found is not None:
            found.add(latency_s)
            self._of.move_to_end(kind)
            return
        while len(self._of) >= _MOST_KINDS:
            self._of.popitem(last=False)
        self._of[kind] = _Quantile(latency_s)

    def after_s(self, kind: Hashable) -> float | None:
        """After how long to ask a second replica; None while too little is known."""
        found = self._of.get(kind)
        return None if found is None or found.calls < _LEAST_CALLS else found.value_s


async def first_good(
    first: Coroutine[Any, Any, Answer],
    after_s: float,
    second: Callable[[], Coroutine[Any, Any, Answer] | None],
    *,
    retryable: tuple[type[Exception], ...],
) -> Answer:
    """The answer of `first`, or of `second` if that is begun and comes earlier.

    Args:
        first: the call.
        after_s: when to begin the second one, in seconds.
        second: begins it; None: there is nobody to ask, or it may not be done.
        retryable: failures of one call after which the other is still waited for.

    Raises:
        Exception: what the last of the calls raised, or one of them that is not retryable.
    """
    calls = {asyncio.ensure_future(first)}
    try:
        done, _ = await asyncio.wait(calls, timeout=after_s)
        if not done and (hedge := second()) is not None:
            calls.add(asyncio.ensure_future(hedge))
        while True:
            done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            final = [call for call in done if not isinstance(call.exception(), retryable)]
            if final or not waiting:
                return (final or list(done))[0].result()
            calls = waiting
    finally:
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

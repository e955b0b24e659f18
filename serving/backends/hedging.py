"""Hedged calls: a second one where the first takes unusually long; the first good answer wins.

After Dean and Barroso, "The Tail at Scale" (CACM 56(2), 2013): a hedge that waits for the 95th percentile
adds about one call in twenty, and takes most of the tail away where one replica is slow and others are not.
The call that is not needed is cancelled.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Answer = TypeVar("Answer")

QUANTILE = 0.95
# How far one latency moves the estimate, as a share of it: up by a fifth, or down by a hundredth. It settles
# within some twenty calls, or within 230 after a first one that was ten times too slow (it compiled, say).
_STEP = 0.2
# With fewer calls there is no percentile to speak of.
_LEAST_CALLS = 20
# Beyond this many, the kind whose last call was longest ago is forgotten.
_MOST_KINDS = 1024


@dataclass(slots=True)
class _Quantile:
    """A running quantile by stochastic approximation (Robbins and Monro, 1951): small steps down, big up."""

    value_s: float
    calls: int = 1

    def add(self, latency_s: float) -> None:
        self.calls += 1
        above = latency_s > self.value_s
        self.value_s *= 1.0 + _STEP * (QUANTILE if above else QUANTILE - 1.0)


class HedgeTimes:
    """When a call is unusually late: after the 95th percentile of its kind, such as of its batch size."""

    def __init__(self) -> None:
        self._of: OrderedDict[Hashable, _Quantile] = OrderedDict()  # the latest call's comes last

    def learn(self, kind: Hashable, latency_s: float) -> None:
        """A call of this kind took this long, hedged or not."""
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


class _Second(Generic[Answer]):
    """The call that is begun once the first one is late.

    Args:
        begin: begins it; gives None if there is nobody to ask, or it may not be done.
        after_s: when to begin it, in seconds.
        again_s: after how long to try again if it was not begun, in seconds; None: never.
        retryable: failures of it after which the first one is still waited for.
        end_first: ends the first one, once there is no need to wait for it.

    Attributes:
        call: the call, once it has begun.
    """

    def __init__(
        self,
        begin: Callable[[], Coroutine[Any, Any, Answer] | None],
        after_s: float,
        again_s: float | None,
        retryable: tuple[type[Exception], ...],
        end_first: Callable[[], None],
    ) -> None:
        self._begin = begin
        self._again_s = again_s
        self._retryable = retryable
        self._end_first = end_first
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(after_s, self._late)
        self._first_ended = False
        self.call: asyncio.Task[Answer] | None = None

    def _late(self) -> None:
        made = self._begin()
        if made is not None:
            self.call = self._loop.create_task(made)
            self.call.add_done_callback(self._done)
        elif self._again_s is not None:
            self._timer = self._loop.call_later(self._again_s, self._late)

    def _done(self, call: asyncio.Task[Answer]) -> None:
        if not (self.failed() or call.cancelled() or self._first_ended):
            self._end_first()

    def failed(self) -> bool:
        """Whether it has failed in a way that leaves the answer to the first one."""
        call = self.call
        if call is None or not call.done() or call.cancelled():
            return False
        return isinstance(call.exception(), self._retryable)

    def first_ended(self) -> None:
        """The first one has ended: this one is not begun any more."""
        self._first_ended = True
        self._timer.cancel()

    async def aclose(self) -> None:
        """Cancel it, if it has not ended."""
        if self.call is not None:
            self.call.cancel()
            await asyncio.wait([self.call])


async def first_good(
    first: Awaitable[Answer],
    after_s: float,
    second: Callable[[], Coroutine[Any, Any, Answer] | None],
    *,
    retryable: tuple[type[Exception], ...],
    again_s: float | None = None,
) -> Answer:
    """The answer of `first`, or of `second` if that is begun and comes earlier.

    `first` runs in the caller's own task: so calls that are not late, which is most of them, pay next to
    nothing, and what follows them runs in the same turn of the event loop.

    Args:
        first: the call.
        after_s: when to begin the second one, in seconds.
        second: begins it; gives None if there is nobody to ask, or it may not be done.
        retryable: failures of one call after which the other is still waited for.
        again_s: after how long to try again if the second one was not begun, in seconds; None: never.

    Raises:
        Exception: what the last of the calls raised, or one of them that is not retryable.
    """
    limit = asyncio.timeout(None)
    other = _Second(second, after_s, again_s, retryable, lambda: limit.reschedule(0.0))
    try:
        async with limit:
            try:
                return await first
            finally:
                other.first_ended()
    except retryable:
        if other.call is None or other.failed():
            raise
        return await other.call
    except TimeoutError:
        if other.call is None or not limit.expired():
            raise
        return other.call.result()
    finally:
        await other.aclose()

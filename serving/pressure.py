"""Decides what may come in while memory is short, before it takes any: an overload manager, after Envoy's.

HTTP bodies are counted as they come in. gRPC hands over whole messages, whose size is unknown until they are
here. So a message is read only while there is room for one as large as its connection has sent so far, or for
the largest if it has sent none; those after it wait for a moment, unread. For a slow client ever less room is
set aside, so that it does not keep others out: it cannot send much meanwhile. If that turns out to be wrong,
and memory is nearly gone, the messages that have been coming in the longest are given up (Envoy's "reset high
memory stream").

Decides, and awaits nothing; times are on the monotonic clock and given by the caller.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serving.errors import Overloaded, out_of_memory

# Shares of what is left while the process is idle, not of the limit: what it takes by itself varies.
_KEPT_PART = 0.2
_LAST_PART = 0.1
# A message takes about three times its size: as gRPC's buffers and one string of bytes, then parsed, and as
# what is made of it, such as the message to a replica. Of one that has been read, two of these are to come.
_COPIES = 3
_COPIES_BEYOND_READ = 2
# A fast client has sent a large message by then; one ten times as slow has sent a tenth.
_FAST_S = 0.05
# The same, by the size that messages turn out to have; their mean follows within this much time of reading.
_USUAL_S = 1.0
_SAMPLE_S = 0.005
_STALE_S = 0.001
_SMALL_BYTES = 256 * 2**10
_GIVEN_UP_PART = 4
# Long enough for free memory to be given back to the system.
_SETTLE_S = 0.5
_FORGETTING = 0.99
_MOST_PEERS = 4096
RETRY_AFTER_S = 1.0


class Read:
    """A message that is being received.

    Args:
        started: since when.
        give_up: ends its call with an error.
        expected_bytes: its size, by what its connection has sent so far; None: it has sent nothing.
        stream: whether it is one of a stream, whose client may just be idle.
    """

    __slots__ = ("charge_bytes", "expected_bytes", "give_up", "started", "stream")

    def __init__(
        self,
        started: float,
        give_up: Callable[[Overloaded], None],
        expected_bytes: int | None = None,
        *,
        stream: bool = False,
    ) -> None:
        self.started = started
        self.give_up = give_up
        self.expected_bytes = expected_bytes
        self.stream = stream
        self.charge_bytes = 0.0


class ExpectedSizes:
    """How large a connection's next message may be: as the largest so far, which fades with each new one."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}

    def of(self, peer: str) -> int | None:
        """In bytes; None: it has sent none, or that was long ago."""
        return self._sizes.get(peer)

    def came(self, peer: str, size_bytes: int) -> None:
        """A message of this size came."""
        known = self._sizes.pop(peer, 0)
        self._sizes[peer] = max(size_bytes, int(known * _FORGETTING))
        if len(self._sizes) > _MOST_PEERS:
            del self._sizes[next(iter(self._sizes))]


class Pressure:
    """The memory of one process that has a limit. Belongs to its event loop; `decoding` is for any thread.

    Args:
        left: reads how many bytes the process may still take.
        largest_bytes: the largest size that a message may have.
        refused: counts a refusal.

    Attributes:
        short: set when memory is short, to have free memory given back; whoever does that clears it.
        busy: whether requests are being worked on.
    """

    def __init__(
        self, left: Callable[[], int], largest_bytes: int, refused: Callable[[], None] = lambda: None
    ) -> None:
        self._left = left
        self._refused = refused
        self._idle_left_bytes = self._at_start_bytes = left()
        self._short_since: float | None = None
        self._most_bytes = float(_COPIES * largest_bytes)
        self._mean_bytes = 0.0
        self._reads: dict[Read, None] = {}
        self._coming_bytes = 0.0
        self._working_bytes = 0
        self._decoding_bytes = 0
        self._lock = threading.Lock()
        self._beyond_kept_bytes = 0
        self._sampled = float("-inf")
        self.short = asyncio.Event()
        self.busy: Callable[[], bool] = lambda: False

    @property
    def _last_bytes(self) -> int:
        return int(self._idle_left_bytes * _LAST_PART)

    @property
    def reading(self) -> bool:
        """Whether messages are being received."""
        return bool(self._reads)

    def check(self, now: float) -> None:
        """Raise Overloaded if memory is so short that nothing more may come in."""
        if self._sample(now, _SAMPLE_S) > 0 or self._sample(now, _STALE_S) > 0:
            self._short_since = None
        elif not self._settled(now):
            raise self.too_short()

    def _settled(self, now: float) -> bool:
        """Whether the process is idle, and yet no more memory can be had, not even by giving some back.

        What is left then is all there is, and refusing would never end.
        """
        if self.busy() or self._working_bytes:
            self._short_since = None
            return False
        self._short_since = self._short_since or now
        if now - self._short_since < _SETTLE_S:
            return False
        self._short_since = None
        self._idle_left_bytes = self._left()
        self._sampled = float("-inf")
        return self._idle_left_bytes > 0

    def has_room(self, now: float, expected_bytes: int | None = None) -> bool:
        """Whether one more message can be read, of the size that is expected of it; None: of the largest.

        If there is room for fewer than two of the largest, not all that it may take need be free: else one
        slow client would keep out all others, and a low limit everybody.
        """
        for oldest_s in (_SAMPLE_S, _STALE_S):
            beyond_bytes = self._sample(now, oldest_s)
            promised = self._coming_bytes + self._working_bytes + self._decoding_bytes
            if beyond_bytes > promised + min(self._most(expected_bytes), beyond_bytes / 2):
                return True
        return False

    def _sample(self, now: float, oldest_s: float) -> int:
        """How much is left beyond the reserve, as it was at most `oldest_s` ago."""
        if now - self._sampled >= oldest_s:
            self._sampled = now
            left_bytes = self._left()
            self._idle_left_bytes = min(self._at_start_bytes, max(self._idle_left_bytes, left_bytes))
            self._beyond_kept_bytes = left_bytes - int(self._idle_left_bytes * _KEPT_PART)
            for read in self._reads:
                read.charge_bytes = self._charge(read, now - read.started)
            self._coming_bytes = sum(read.charge_bytes for read in self._reads)
        return self._beyond_kept_bytes

    def _most(self, expected_bytes: int | None) -> float:
        if expected_bytes is None:
            return self._most_bytes
        return min(self._most_bytes, float(_COPIES * max(expected_bytes, _SMALL_BYTES)))

    def _charge(self, read: Read, age_s: float) -> float:
        most_bytes = self._most(read.expected_bytes)
        if age_s <= _FAST_S:
            return most_bytes
        usual_bytes = min(most_bytes, _COPIES * self._mean_bytes)
        return max(most_bytes * _FAST_S / age_s, usual_bytes * min(1.0, _USUAL_S / age_s))

    def begin(self, read: Read) -> None:
        """A message is being received from now on."""
        read.charge_bytes = self._charge(read, 0.0)
        self._reads[read] = None
        self._coming_bytes += read.charge_bytes

    def end(self, read: Read, size_bytes: int | None, now: float) -> None:
        """It has come, with this size; or it will not (None).

        The mean is weighted by the time that messages take: large ones take longer, so at any moment more of
        those being received are large.
        """
        if read in self._reads:
            del self._reads[read]
            self._coming_bytes = self._coming_bytes - read.charge_bytes if self._reads else 0.0
        if size_bytes is not None:
            took_s = now - read.started
            self._mean_bytes += (size_bytes - self._mean_bytes) * took_s / (took_s + _USUAL_S)

    @contextmanager
    def working(self, size_bytes: int) -> Iterator[None]:
        """Room, while the block runs, for what is made of a message that has come.

        Raises:
            Overloaded: there is none.
        """
        promised_bytes = _COPIES_BEYOND_READ * size_bytes
        if size_bytes >= _SMALL_BYTES and self._working_bytes:
            left_bytes = self._left() - self._last_bytes - self._decoding_bytes
            if left_bytes < promised_bytes + self._working_bytes:
                raise self.too_short()
        self._working_bytes += promised_bytes
        try:
            yield
        finally:
            self._working_bytes -= promised_bytes

    def give_up(self) -> None:
        """Give up some of the messages being received if memory is nearly gone, so that it lasts for others.

        First those that have been coming in the longest: they hold the most, and slow clients must not keep
        others out. Then, of streams, the latest: an older one is more likely to be idle and to hold nothing.
        """
        if self._left() >= self._last_bytes:
            return
        reads = list(self._reads)  # as they began
        ordered = [each for each in reads if not each.stream]
        ordered += [each for each in reversed(reads) if each.stream]
        for each in ordered[: max(1, len(ordered) // _GIVEN_UP_PART)]:
            self._coming_bytes -= each.charge_bytes
            del self._reads[each]
            each.give_up(self.too_short())

    def too_short(self) -> Overloaded:
        """The error for those who are refused for lack of memory; it is counted."""
        self.short.set()
        self._refused()
        return Overloaded(
            "the gateway's memory is nearly used up, and nothing of this request was kept",
            stage="admission",
            retry_after_s=RETRY_AFTER_S,
        )

    @contextmanager
    def decoding(self, size_bytes: int) -> Iterator[None]:
        """Room for an image's pixels while the block runs.

        Raises:
            Overloaded: there is none.
        """
        with self._lock:
            if self._left() - self._last_bytes < self._decoding_bytes + size_bytes:
                raise out_of_memory("decode")
            self._decoding_bytes += size_bytes
        try:
            yield
        finally:
            with self._lock:
                self._decoding_bytes -= size_bytes

"""Decodes images off the event loop, on threads of its own.

The decoders release the interpreter lock, so one thread per core keeps all cores busy. While many images
wait a thread takes several at once: handing over each one costs as much as a tenth of its decoding. Callers
take turns, so that one who sends large or damaged files in numbers delays itself and not the others.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving.errors import Internal, SluiceError, out_of_memory, without_frames
from serving.images import ImageSpec, Room, anything_fits, decode
from serving.pressure import Pressure
from serving.turns import TurnQueue

Decoded = np.ndarray | SluiceError
"""An image as uint8 [H,W,C], or what is wrong with it."""

# More at once would keep the first waiting for the last.
_MOST_AT_ONCE = 4


@dataclass(eq=False, slots=True)
class _Job:
    data: bytes
    spec: ImageSpec
    max_pixels: int
    done: asyncio.Future[Decoded]


class Decoders:
    """Threads that decode. Belongs to one event loop: that of the first `decode`.

    Args:
        threads: how many; as many as there are cores.
        pressure: grants memory for pixels; None: there is always room.
    """

    def __init__(self, threads: int, pressure: Pressure | None = None) -> None:
        self._count = threads
        self._room: Room = anything_fits if pressure is None else pressure.decoding
        self._jobs: TurnQueue[_Job] = TurnQueue()
        self._changed = threading.Condition()
        self._closed = False
        self._idle = 0
        self._threads: list[threading.Thread] = []

    async def decode(
        self, images: Sequence[bytes], spec: ImageSpec, *, max_pixels: int, caller: str = ""
    ) -> list[Decoded]:
        """Decode a caller's files to the size and channels of `spec`; see `serving.images.decode`.

        Raises:
            Overloaded: there is no memory for a thread.
        """
        loop = asyncio.get_running_loop()
        jobs = [_Job(data, spec, max_pixels, loop.create_future()) for data in images]
        with self._changed:
            # A thread that was notified counts as idle until it wakes: what waits already is its work.
            wanted = len(self._jobs) + len(jobs) - self._idle
            for _ in range(min(wanted, self._count - len(self._threads))):
                self._start(loop)
            for job in jobs:
                self._jobs.append(caller, job)
            self._changed.notify(len(jobs))
        try:
            return [await job.done for job in jobs]
        finally:
            for job in jobs:  # if the caller leaves, the rest must not be decoded, nor held until its turn
                job.done.cancel()
                job.data = b""

    def close(self) -> None:
        """End the threads; what has not begun is not decoded."""
        with self._changed:
            self._closed = True
            self._jobs = TurnQueue()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        name = f"decode-{len(self._threads)}"
        thread = threading.Thread(target=self._work, args=[loop], name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # there is no memory for its stack; another request may find some
            if not self._threads:
                raise out_of_memory("decode") from None
            return
        self._threads.append(thread)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        while jobs := self._next():
            done = [(job.done, _decoded(job, self._room)) for job in jobs if not job.done.cancelled()]
            try:
                loop.call_soon_threadsafe(_tell, done)
            except RuntimeError:  # the loop has ended, and nobody waits
                return

    def _next(self) -> list[_Job]:
        """The next images to decode, the first of them still wanted; none if the threads are to end."""
        with self._changed:
            while True:
                while self._jobs and self._jobs.first().done.cancelled():
                    self._jobs.popleft()
                if self._closed or self._jobs:
                    break
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
            share = min(_MOST_AT_ONCE, max(1, len(self._jobs) // self._count))
            return [self._jobs.popleft() for _ in range(min(share, len(self._jobs)))]


def _decoded(job: _Job, room: Room) -> Decoded:
    try:
        return decode(job.data, job.spec, max_pixels=job.max_pixels, room=room)
    except SluiceError as error:
        return without_frames(error)
    except Exception as error:  # a bug; the thread must outlive it
        return Internal(f"the decoder failed unexpectedly: {error}", stage="decode")


def _tell(done: Sequence[tuple[asyncio.Future[Decoded], Decoded]]) -> None:
    for future, decoded in done:
        if not future.done():
            future.set_result(decoded)

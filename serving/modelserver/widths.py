"""Runs a model on one thread or on all cores, whichever answers sooner.

TensorFlow shares each op of a run out to all cores. Short ops, those of a small model or of few rows, are
done sooner by one thread than shared out (on two cores, one image through a ResNet-20 at 32×32 takes 1.0 ms
instead of 1.6). How many threads an op gets is a session's own, so that a model has two: a narrow one and a
wide one.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import NamedTuple

import numpy as np

from serving.modelserver.manager import Servable
from serving.modelserver.signature import Signature

# A wide run takes the cores from whatever else there is to do, such as decoding the next images: it is worth
# them if it saves a sixth of the time.
_WORTH_WHILE = 5 / 6
# Of each width, before one is preferred; the first is not counted, since it compiles kernels.
_LEAST_RUNS = 4
_LAST_RUNS = 7
# The other width is tried again once in so many runs: what else the machine does changes.
_TRY_AGAIN = 64


class Kind(NamedTuple):
    """What takes about the same time: what is fetched, for a number of rows up to the next power of two."""

    fetches: tuple[str, ...]
    rows: int


def kind_of(feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> Kind:
    """The kind of a run; its rows are the first dimension of the longest feed."""
    rows = max((len(array) for array in feeds.values() if array.ndim), default=1)
    return Kind(tuple(fetches), 1 << max(rows - 1, 0).bit_length())


class _Taken:
    """What the last runs of one width took; the median, since one that was disturbed says nothing."""

    def __init__(self) -> None:
        self.runs = 0
        self._last_s: deque[float] = deque(maxlen=_LAST_RUNS)

    def learn(self, took_s: float) -> None:
        self.runs += 1
        if self.runs > 1:
            self._last_s.append(took_s)

    @property
    def median_s(self) -> float:
        return median(self._last_s)


class Widths:
    """What runs take that have a core to spare, by their kind: narrow ones and wide ones. Thread-safe.

    Args:
        most_kinds: how many are known at once, since callers choose them; past that all are learned anew.
    """

    def __init__(self, most_kinds: int = 256) -> None:
        self._most_kinds = most_kinds
        self._lock = threading.Lock()
        self._taken: dict[Kind, tuple[_Taken, _Taken]] = {}  # narrow, wide

    def is_wide(self, kind: Kind, *, may_try: bool) -> bool:
        """Whether the next run of this kind is to be a wide one; what is not known yet is tried, or wide."""
        with self._lock:
            narrow, wide = self._taken.get(kind, (_Taken(), _Taken()))
            if min(narrow.runs, wide.runs) < _LEAST_RUNS:
                return not may_try or wide.runs <= narrow.runs
            is_worth_it = wide.median_s < _WORTH_WHILE * narrow.median_s
            is_trial = may_try and (narrow.runs + wide.runs) % _TRY_AGAIN == 0
            return is_worth_it != is_trial

    def learn(self, kind: Kind, *, is_wide: bool, took_s: float) -> None:
        """A run of this kind took so long."""
        with self._lock:
            if kind not in self._taken:
                if len(self._taken) >= self._most_kinds:
                    self._taken.clear()
                self._taken[kind] = _Taken(), _Taken()
            self._taken[kind][is_wide].learn(took_s)


class Cores:
    """The processors that all models of this process share, and how many runs are on them.

    Args:
        count: how many there are.

    Attributes:
        wide: the threads that make wide runs, and no others: what TensorFlow prepares for an op is kept with
            the thread, and made for one width.
    """

    def __init__(self, count: int) -> None:
        # Else the first session's threads are everybody's; read as TensorFlow makes its first session.
        os.environ["TF_OVERRIDE_GLOBAL_THREADPOOL"] = "1"
        self._count = count
        self._lock = threading.Lock()
        self._running = 0
        self._times_full = 0
        self.wide = ThreadPoolExecutor(count, thread_name_prefix="wide")

    @contextmanager
    def run(self) -> Iterator[Run]:
        """Count a run as long as it lasts."""
        with self._lock:
            self._running += 1
            if self._running >= self._count:
                self._times_full += 1
            run = Run(
                self,
                self._times_full,
                has_room=self._running < self._count,
                is_crowded=self._running > self._count,
            )
        try:
            yield run
        finally:
            with self._lock:
                self._running -= 1

    def times_full(self) -> int:
        """How many runs have begun that left no core to spare."""
        with self._lock:
            return self._times_full


@dataclass(frozen=True, slots=True)
class Run:
    """A run that is on the cores.

    Attributes:
        has_room: whether it left a core to spare as it began.
        is_crowded: whether more runs than cores were there as it began.
    """

    _cores: Cores
    _times_full: int
    has_room: bool
    is_crowded: bool

    @property
    def had_room(self) -> bool:
        """Whether there has been a core to spare from its beginning up to now."""
        return self.has_room and self._cores.times_full() == self._times_full


class TwoWidths:
    """A servable of two sessions with the same model, which must keep no state: each would have its own.

    Args:
        narrow: has one thread.
        wide: has all cores.
        cores: what is shared with the other models.
    """

    def __init__(self, narrow: Servable, wide: Servable, cores: Cores) -> None:
        self._narrow, self._wide, self._cores = narrow, wide, cores
        self._widths = Widths()

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """By name."""
        return self._wide.signatures

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        """Run the graph once; raises StatusError."""
        with self._cores.run() as run:
            if run.is_crowded:
                return self._narrow.run(feeds, fetches)
            kind = kind_of(feeds, fetches)
            is_wide, started = self._widths.is_wide(kind, may_try=run.has_room), perf_counter()
            if is_wide:
                outputs = self._cores.wide.submit(self._wide.run, feeds, fetches).result()
            else:
                outputs = self._narrow.run(feeds, fetches)
            if run.had_room:
                self._widths.learn(kind, is_wide=is_wide, took_s=perf_counter() - started)
            return outputs

    def close(self) -> None:
        """Free both sessions."""
        self._narrow.close()
        self._wide.close()

"""Runs a model on one thread or on all cores, whichever answers sooner.

TensorFlow splits each op of a run over all cores. Short ops, those of a small model or of few rows, finish
sooner on one thread (on two cores, one image through a ResNet-20 at 32×32 takes 1.0 ms instead of 1.6); and
two runs on two cores finish sooner on one core each than if each splits its ops (two threads that run 32
images at a time, in process, get 6 % more of them done). The number of threads per op belongs to a session,
so a model has two sessions: a narrow one and a wide one.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

import numpy as np

from serving.modelserver.manager import Servable
from serving.modelserver.niceness import step_back
from serving.modelserver.signature import Signature

# A wide run takes the cores from whatever else there is to do, such as decoding the next images: that is
# worth it if it saves a sixth of the time.
_WORTH_WHILE = 5 / 6
# How many runs of each width before one is preferred; the first is not counted, since it compiles kernels.
_LEAST_RUNS = 4
# The other width is tried again once in this many runs, since the machine's other load changes: several times
# in a row, since the first ones find the caches cold.
_TRY_AGAIN = 128
_TRIALS = 4


class Kind(NamedTuple):
    """Runs that take about the same time: by what is fetched, and the rows up to the next power of two."""

    fetches: tuple[str, ...]
    rows: int


def kind_of(feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> Kind:
    """The kind of a run; its rows are the first dimension of the longest feed."""
    rows = max((len(array) for array in feeds.values() if array.ndim), default=1)
    return Kind(tuple(fetches), 1 << max(rows - 1, 0).bit_length())


class _Taken:
    """What the last runs of one width took; the shortest counts, since disturbances only lengthen runs."""

    def __init__(self) -> None:
        self.runs = 0
        self._last_s: deque[float] = deque(maxlen=_TRIALS)

    def learn(self, took_s: float) -> None:
        self.runs += 1
        if self.runs > 1:
            self._last_s.append(took_s)

    @property
    def least_s(self) -> float:
        return min(self._last_s)


class Widths:
    """How long undisturbed runs take, by their kind: narrow ones and wide ones. Thread-safe.

    Args:
        most_kinds: how many are known at once, since callers choose them; beyond that all are forgotten.
    """

    def __init__(self, most_kinds: int = 256) -> None:
        self._most_kinds = most_kinds
        self._lock = threading.Lock()
        self._taken: dict[Kind, tuple[_Taken, _Taken]] = {}  # narrow, wide

    def is_wide(self, kind: Kind) -> bool:
        """Whether the next run of this kind should be a wide one; what is not known yet is tried."""
        with self._lock:
            narrow, wide = self._taken.get(kind, (_Taken(), _Taken()))
            if min(narrow.runs, wide.runs) < _LEAST_RUNS:
                return wide.runs <= narrow.runs
            is_worth_it = wide.least_s < _WORTH_WHILE * narrow.least_s
            is_trial = (narrow.runs + wide.runs) % _TRY_AGAIN < _TRIALS
            return is_worth_it != is_trial

    def learn(self, kind: Kind, *, is_wide: bool, took_s: float) -> None:
        """A run of this kind took this long."""
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
        narrow, wide: the threads for narrow runs only, and for wide ones: what TensorFlow prepares for an op
            is kept with the thread, and made for one width. There are as many as can be of use: further runs
            would only take turns with these.
    """

    def __init__(self, count: int) -> None:
        # Otherwise all share the first session's threads; read when TensorFlow makes its first session.
        os.environ["TF_OVERRIDE_GLOBAL_THREADPOOL"] = "1"
        self._count = count
        self._lock = threading.Lock()
        self._running = 0
        self._times_full = 0
        self.narrow = ThreadPoolExecutor(count, thread_name_prefix="narrow", initializer=step_back)
        self.wide = ThreadPoolExecutor(max(1, count // 2), thread_name_prefix="wide")

    @contextmanager
    def run(self) -> Iterator[Run]:
        """Count a run while it lasts."""
        with self._lock:
            self._running += 1
            has_room = 2 * self._running <= self._count
            self._times_full += not has_room
            run = Run(self, self._times_full, has_room)
        try:
            yield run
        finally:
            with self._lock:
                self._running -= 1

    def times_full(self) -> int:
        """How many runs have begun that had no room."""
        with self._lock:
            return self._times_full


@dataclass(frozen=True, slots=True)
class Run:
    """A run that is on the cores.

    Attributes:
        has_room: whether there were no more runs than half the cores when it began, so that it could split
            its ops.
    """

    _cores: Cores
    _times_full: int
    has_room: bool

    @property
    def had_room(self) -> bool:
        """Whether there has been room from its beginning until now."""
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
        kind = kind_of(feeds, fetches)
        with self._cores.run() as run:
            is_wide, started = run.has_room and self._widths.is_wide(kind), perf_counter()
            threads, servable = (
                (self._cores.wide, self._wide) if is_wide else (self._cores.narrow, self._narrow)
            )
            outputs = threads.submit(servable.run, feeds, fetches).result()
            if run.had_room:
                self._widths.learn(kind, is_wide=is_wide, took_s=perf_counter() - started)
            return outputs

    def close(self) -> None:
        """Free both sessions."""
        self._narrow.close()
        self._wide.close()

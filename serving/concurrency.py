"""An adaptive concurrency limit for each model, learned from latency.

Each model has a limit of its own: a model that is slower than the target even when idle, or that is asked for
more than it can do, is no reason to refuse callers of the others.

Additive increase and multiplicative decrease, after Netflix's concurrency-limits (its AIMDLimit) and
TCP's congestion avoidance (RFC 5681). Latency below the target and a limit in use let the limit grow by
one in about the time of one request; latency above the target cuts it, at most once in that time, since
what is in progress was let in under the old limit.

A gradient of latency against its own minimum, the library's other way, does not fit a gateway that batches:
latency grows with every batch that fills, which is what is wanted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Self

from serving.access.shares import Shares
from serving.errors import DeadlineExceeded

_LEAST_CUT = 0.5
_MOST_CUT = 0.9
_EVEN_IF_FAST_S = 0.05


class ConcurrencyLimit:
    """The limit of one model. Times are on the monotonic clock and given by the caller.

    Args:
        target_s: how long a request may take before the limit falls.
        floor: the limit never falls below this: what fills the replicas. It may change.
        ceiling: the limit never grows beyond this.
    """

    def __init__(self, target_s: float, *, floor: Callable[[], int], ceiling: int) -> None:
        self._target_s = target_s
        self._floor = floor
        self._ceiling = ceiling
        # Nothing is known yet: a rush at the start must not fill all of it before a latency has been seen.
        self._limit = ceiling / 2
        self._next_cut = 0.0

    @property
    def limit(self) -> int:
        """How much may be in progress now."""
        return min(self._ceiling, max(int(self._limit), self._floor()))

    def observe(self, latency_s: float, now: float, in_progress: int, alike: int | None = None) -> None:
        """One request ended well after `latency_s`.

        Args:
            latency_s: how long it took.
            now: the time.
            in_progress: how many were in progress, itself among them.
            alike: how many of those take about as long for what they ask; None: all.
        """
        limit = min(float(self._ceiling), max(self._limit, float(self._floor())))
        if latency_s <= self._target_s:
            if 2 * in_progress >= limit:
                self._limit = min(float(self._ceiling), limit + 1 / limit)
            return
        # So few are let in however long they take: a first call that compiles must not shut out a later rush,
        # nor a slow candidate with a small share of the requests those of the stable version.
        few = in_progress if alike is None else alike
        if few <= self._floor() or now < self._next_cut:
            return
        self._next_cut = now + max(latency_s, _EVEN_IF_FAST_S)
        # This much in progress took this long; scaled by the ratio it would take the target (Little's law).
        fitting = self._target_s / latency_s
        self._limit = min(limit, float(in_progress)) * min(_MOST_CUT, max(_LEAST_CUT, fitting))


class _Model:
    """What is in progress of one model: by whose it is, and by which version answers."""

    __slots__ = ("limit", "of_version", "working")

    def __init__(self, limit: ConcurrencyLimit) -> None:
        self.limit = limit
        self.working = Shares()
        self.of_version: Counter[int] = Counter()


class Work:
    """The work on one request: a context manager, in progress while its block runs.

    Its duration counts if it ends well or at its deadline, and a version was found for it.

    Args:
        of: what else is in progress of its model.
        caller: whose request it is.
        check: raises if there is no room for it.
        clock: the monotonic clock, in seconds.
    """

    def __init__(
        self, of: _Model, caller: str, check: Callable[[], None], clock: Callable[[], float]
    ) -> None:
        self._of = of
        self._caller = caller
        self._check = check
        self._clock = clock
        self._started = 0.0
        self._version: int | None = None

    def __enter__(self) -> Self:
        self._check()
        self._of.working.take(self._caller)
        self._started = self._clock()
        return self

    def by(self, version: int | None) -> None:
        """This version answers now, instead of any before; None: none does any longer."""
        count = self._of.of_version
        if self._version is not None:
            count[self._version] -= 1
            if not count[self._version]:
                del count[self._version]
        self._version = version
        if version is not None:
            count[version] += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        of = self._of
        if self._version is not None and (error is None or isinstance(error, DeadlineExceeded)):
            now, alike = self._clock(), of.of_version[self._version]
            of.limit.observe(now - self._started, now, of.working.total, alike)
        self.by(None)
        of.working.give_back(self._caller)


class Progress:
    """What is in progress in one gateway, with a limit for each model.

    Args:
        limit: makes the limit of a model that is asked for the first time. Only names of existing models may
            be asked for: what is learned of each is kept.
        most: how much may be in progress of a model at the very most.
        clock: the monotonic clock, in seconds.
    """

    def __init__(self, limit: Callable[[], ConcurrencyLimit], most: int, clock: Callable[[], float]) -> None:
        self._new_limit = limit
        self._most = most
        self._clock = clock
        self._models: dict[str, _Model] = {}

    def _of(self, model: str) -> _Model:
        found = self._models.get(model)
        if found is None:
            found = self._models[model] = _Model(self._new_limit())
        return found

    @property
    def total(self) -> int:
        """How much is in progress of all models."""
        return sum(each.working.total for each in self._models.values())

    def of(self, model: str) -> int:
        """How much is in progress of a model."""
        return self._of(model).working.total

    def limit_of(self, model: str) -> int:
        """How much may be in progress of a model now."""
        return self._of(model).limit.limit

    def fits(self, model: str, caller: str) -> bool:
        """Whether one more request of a caller may be in progress.

        The limit is an estimate and may be exceeded: a caller who holds less than an equal share is let in on
        top of it, and one who holds more waits until there are fewer again.
        """
        of = self._of(model)
        return of.working.fits(caller, 1, of.limit.limit, reserve=self._most)

    def work(self, model: str, caller: str, check: Callable[[], None] = lambda: None) -> Work:
        """The work on a caller's request for a model, which begins if `check` raises nothing."""
        return Work(self._of(model), caller, check, self._clock)

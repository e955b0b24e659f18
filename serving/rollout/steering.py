"""A gateway's part in rollouts: which version answers, what is counted, which requests are copied.

The gateway asks `route`, and reports what became of each request and each call; the controller sets the
splits. Everything runs on the event loop, and nothing here awaits on a caller's path.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypeVar

import numpy as np

from serving import errors
from serving.backends.replica import FAIR_TIME_S
from serving.rollout.counts import Counts, key, of_versions, routed_key, weight_name
from serving.rollout.memory import Memory, Named, OwnMemory
from serving.routing import Route, Split, choose

Answer = TypeVar("Answer")
Api = TypeVar("Api")

# Errors that are the version's: it failed on a request. The others are about reaching it (no replica could be
# reached, or one was full) and belong to neither version.
MODEL_FAULTS = (errors.Internal, errors.InvalidInput, errors.FailedPrecondition, errors.Unimplemented)

# The caller's timer and the call's own both end at the deadline, in either order: this close to it, an end is
# the deadline's.
_TIMER_SLACK_S = 0.01

# For the latency baseline: enough for a 99th percentile that holds, and under load only minutes old.
_RECENT = 5000
_LEAST_RECENT = 50

# Copies in flight at once. Beyond it copies are dropped: they must not queue up beside callers' requests.
_MOST_COPIES = 2


@dataclass(slots=True)
class _Model:
    split: Split
    latency_limit_s: float | None = None
    divided: Sequence[tuple[float, float]] = ()
    counts: Counts = field(default_factory=dict)
    stable_s: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))


class Steering:
    """Routes by the splits that are set, and counts. Use as an async context manager: it owns the copies.

    Args:
        busy: Whether callers wait; copies are dropped then.
        clock: The monotonic clock, in seconds.

    Attributes:
        memory: Where it notes how candidates answered copies, for feedback on them.
    """

    def __init__(
        self, busy: Callable[[], bool] = lambda: False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.busy = busy
        self._clock = clock
        self.memory: Memory = OwnMemory()
        self._models: dict[str, _Model] = {}
        self._copies: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._copies:
            task.cancel()
        await asyncio.gather(*self._copies, return_exceptions=True)

    def set_split(
        self,
        model: str,
        split: Split,
        latency_limit_s: float | None,
        divided: Sequence[tuple[float, float]] = (),
    ) -> None:
        """Routes the model's requests by this split from now on.

        Counts of versions that are neither in this split nor in the one before are forgotten: a candidate has
        two counts for each class, and all counts are sent to other gateways every second.

        Args:
            model: The model.
            split: How they are divided.
            latency_limit_s: What counts as slow; None: not known yet.
            divided: Since when, in Unix seconds, callers are or were divided by which of the candidate's
                weights; oldest first, empty while they are not.
        """
        found = self._models.setdefault(model, _Model(split))
        before, now = found.split.versions, split.versions
        if before != now:
            found.counts = of_versions(found.counts, before | now)
        if found.split.stable != split.stable:
            found.stable_s.clear()
        found.split, found.latency_limit_s = split, latency_limit_s
        found.divided = divided

    def splits(self) -> Mapping[str, Split]:
        """How each model's requests are divided now."""
        return {name: found.split for name, found in self._models.items()}

    def route(self, model: str, routing_key: str, *, keyed: bool) -> Route | None:
        """Where a request that names no version goes; None if the model has no split.

        Args:
            model: The model.
            routing_key: The caller's key, or the request's id.
            keyed: Whether it is the caller's.
        """
        found = self._models.get(model)
        if found is None:
            return None
        route = choose(found.split, routing_key)
        if not keyed and found.split.candidate is not None:
            self._add(found, routed_key(route.arm, found.split.weight))
        return route

    def answered(self, model: str, route: Route | None, duration_s: float, *, late: bool) -> None:
        """Counts one routed request that was answered, or (`late`) that ran out of time."""
        found = self._models.get(model)
        if found is None or route is None:
            return
        limit_s = found.latency_limit_s
        self._add(found, key("requests", route.version))
        if late or (limit_s is not None and duration_s > limit_s):
            self._add(found, key("slow", route.version))
        if route.arm == "stable" and not late:
            found.stable_s.append(duration_s)

    def left(self, model: str, route: Route | None, duration_s: float) -> None:
        """Counts one routed request whose caller left before the answer, if it was slow by then.

        Otherwise it is no event: nobody knows whether the answer would have come in time.
        """
        found = self._models.get(model)
        limit_s = None if found is None else found.latency_limit_s
        if limit_s is not None and duration_s > limit_s:
            self.answered(model, route, duration_s, late=True)

    async def call(
        self,
        model: str,
        version: int,
        call: Callable[[Api, float], Awaitable[Answer]],
        make: Callable[[Callable[[Api, float], Awaitable[Answer]]], Awaitable[Answer]],
        *,
        faults: tuple[type[errors.SluiceError], ...] = MODEL_FAULTS,
        is_sound: Callable[[Answer], bool] = lambda _answer: True,
    ) -> Answer:
        """Makes a call through `make`, which may try it several times, and counts it as one event.

        It is bad if any attempt failed by the version's fault, or had no answer at the deadline after a fair
        time, whichever timer ended it, or if the answer is not sound. If no replica could be reached, it is
        no event at all.
        """
        failed = False

        async def attempt(api: Api, timeout_s: float) -> Answer:
            nonlocal failed
            started = self._clock()
            try:
                return await call(api, timeout_s)
            except faults:
                failed = True
                raise
            except (errors.DeadlineExceeded, asyncio.CancelledError):
                had_s = self._clock() - started
                failed = failed or had_s >= max(FAIR_TIME_S, timeout_s - _TIMER_SLACK_S)
                raise

        try:
            answer = await make(attempt)
        except (errors.SluiceError, asyncio.CancelledError):
            if failed:
                self._count_call(model, version, failed=True)
            raise
        self._count_call(model, version, failed=failed or not is_sound(answer))
        return answer

    def _count_call(self, model: str, version: int, *, failed: bool) -> None:
        found = self._models.get(model)
        if found is None or version not in (found.split.stable, found.split.candidate):
            return
        self._add(found, key("calls", version))
        if failed:
            self._add(found, key("failed", version))

    def copy(
        self,
        model: str,
        route: Route | None,
        stable: Sequence[str] | None,
        ask: Callable[[int], Awaitable[Sequence[str]]],
    ) -> Iterator[str]:
        """Has the candidate answer a copy of a request, if this one is to be copied and there is room.

        Args:
            model: The model.
            route: The request's route.
            stable: The stable version's labels, one per image; None if it was at fault.
            ask: Asks a version for its labels; raises DeadlineExceeded only if the version is to blame.

        Returns:
            A name for each copied image, in order, by which feedback finds the candidate's answer.
        """
        if route is None or route.shadow is None or self.busy() or len(self._copies) >= _MOST_COPIES:
            return iter(())
        name = secrets.token_hex(6)
        task = asyncio.create_task(self._compare(name, model, route.shadow, stable, ask))
        self._copies.add(task)
        task.add_done_callback(self._copies.discard)
        return (f"{name}-{place}" for place in range(len(stable or ())))

    async def _compare(
        self,
        name: str,
        model: str,
        candidate: int,
        stable: Sequence[str] | None,
        ask: Callable[[int], Awaitable[Sequence[str]]],
    ) -> None:
        named: Sequence[str] | None = None
        try:
            named = await ask(candidate)
        except (*MODEL_FAULTS, errors.DeadlineExceeded):
            pass
        except errors.SluiceError:
            return
        found = self._models.get(model)
        if found is None or found.split.candidate != candidate:
            return
        self._add(found, key("copies", candidate))
        if (named is None) != (stable is None):
            self._add(found, key("candidate-failed" if named is None else "stable-failed", candidate))
        if named is not None and stable is not None:
            self.memory.note(name, Named(candidate, tuple(named)))
            for ours, theirs in zip(stable, named, strict=True):
                self._add(found, key("compared", candidate, ours))
                if ours == theirs:
                    self._add(found, key("agreed", candidate, ours))

    def labelled(self, model: str, version: int, *, wrong: bool, at: float) -> None:
        """Counts feedback on one answer of a version; as evidence if callers were divided at that time.

        Stable's earlier answers were to other traffic than the candidate's: what changed since then would
        look like a difference between the two. So would what changed from one weight to the next, since most
        of the candidate's answers are at the last one; so the weight is part of the count.

        Args:
            model: The model.
            version: The version.
            wrong: Whether the answer was.
            at: When it was given, in Unix seconds, without their fraction.
        """
        self._labelled(model, version, wrong=wrong)
        found = self._models.get(model)
        divided = () if found is None else found.divided
        weight = next((weight for since, weight in reversed(divided) if at >= int(since)), None)
        if found is not None and weight is not None:
            self._add(found, key("judged", version, weight_name(weight)))
            if wrong:
                self._add(found, key("judged-wrong", version, weight_name(weight)))

    def _labelled(self, model: str, version: int, *, wrong: bool) -> None:
        found = self._models.get(model)
        if found is not None:
            self._add(found, key("labelled", version))
            if wrong:
                self._add(found, key("wrong", version))

    def labelled_both(
        self, model: str, stable: int, candidate: int, *, stable_wrong: bool, candidate_wrong: bool
    ) -> None:
        """Counts feedback on an image that both versions classified: on each answer, and as a pair."""
        self._labelled(model, stable, wrong=stable_wrong)
        self._labelled(model, candidate, wrong=candidate_wrong)
        found = self._models.get(model)
        if found is None or (found.split.stable, found.split.candidate) != (stable, candidate):
            return  # a pair of an earlier rollout's, which may have been against another version
        self._add(found, key("pairs", candidate))
        if candidate_wrong or stable_wrong:
            who = "both" if candidate_wrong and stable_wrong else "candidate" if candidate_wrong else "stable"
            self._add(found, key(f"{who}-wrong", candidate))

    def counts(self, model: str) -> Counts:
        """All that has been counted for a model so far."""
        found = self._models.get(model)
        return {} if found is None else dict(found.counts)

    def stable_p99_s(self, model: str) -> float | None:
        """The 99th percentile of the stable version's recent answers, None while there were too few."""
        found = self._models.get(model)
        if found is None or len(found.stable_s) < _LEAST_RECENT:
            return None
        return float(np.quantile(found.stable_s, 0.99))

    @staticmethod
    def _add(found: _Model, name: str) -> None:
        found.counts[name] = found.counts.get(name, 0.0) + 1.0

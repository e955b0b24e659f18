"""Observe → judge → advance → save → act, for every rollout, on every look.

Of the gateways that share a store one, the leader, decides; the others follow what is stored. A move is saved
before it is acted on, and what to do follows from the stored state alone: after a crash at any point the next
look does it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from serving.backends.pool import Pool
from serving.catalog import Catalog
from serving.errors import Conflict, SluiceError, Unavailable
from serving.rollout import ledger as ledgers
from serving.rollout.counts import Counts, grown, remembered
from serving.rollout.doubts import held_back, unsure
from serving.rollout.events import Announcer
from serving.rollout.examine import Examiner
from serving.rollout.fleet import Holdings, holdings, replicas_verdict
from serving.rollout.judge import judge
from serving.rollout.known import Baseline, KnownRollouts
from serving.rollout.leader import CountSource, Leadership
from serving.rollout.machine import Phase, advance, judged_phase, moved, spent_quietly
from serving.rollout.newcomers import Newcomers
from serving.rollout.observation import to_intervals
from serving.rollout.pins import Pins
from serving.rollout.plan import Plan
from serving.rollout.quiet import is_quiet
from serving.rollout.reconcile import Reconciler, Wanted
from serving.rollout.record import Rollout
from serving.rollout.steering import Steering
from serving.rollout.store import Store
from serving.rollout.verdict import Outcome, Reason, Verdict
from serving.routing import Split

_log = structlog.get_logger()

# If a look comes more than this many intervals after the last, nobody watched in between.
_MOST_INTERVALS = 10.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the controller works with: the gateway's parts, and what the gateways share."""

    store: Store
    steering: Steering
    pool: Pool
    catalog: Catalog
    reconciler: Reconciler
    leadership: Leadership
    source: CountSource
    announcer: Announcer
    plan: Plan


class Controller:
    """Moves rollouts. `watch` runs for ever; each `look` can be called on its own.

    Args:
        around: What it works with.
        interval_s: How often it looks.
        wall: The time of day, in Unix seconds.
        clock: The monotonic clock, in seconds.
    """

    def __init__(
        self,
        around: Surroundings,
        interval_s: float,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._around = around
        self._interval_s = interval_s
        self._wall = wall
        self._clock = clock
        self._examiner = Examiner(around.pool, around.catalog)
        self._newcomers = Newcomers(around.store, around.plan)
        self._known = KnownRollouts()
        self._kept: dict[str, Wanted] = {}
        self._frozen: frozenset[str] = frozenset()
        self._pins = Pins(around.store, around.catalog)

    async def watch(self) -> None:
        """Looks for ever. A look that fails is logged, and the next one tries again."""
        try:
            while True:
                try:
                    await self.look()
                except (SluiceError, OSError) as error:
                    self._around.announcer.look_failed(error)
                await asyncio.sleep(self._interval_s)
        finally:
            await self._examiner.close()
            await self._around.reconciler.close()
            await asyncio.shield(asyncio.to_thread(self._around.leadership.release))

    async def look(self) -> None:
        """Follows what is stored; if this gateway leads, decides and acts.

        A failure with one model does not keep the others from being followed and decided on.

        Raises:
            SluiceError, OSError: What is stored or shared cannot be read; or, once all other models have been
                dealt with, the first failure with a model.
        """
        around = self._around
        rollouts = await asyncio.to_thread(self._load)
        failures = await self._pin(rollouts)
        self._steer(rollouts)
        await asyncio.to_thread(
            around.source.publish, {model: around.steering.counts(model) for model in around.catalog.names()}
        )
        await asyncio.to_thread(around.steering.memory.share)
        if not await asyncio.to_thread(around.leadership.held):
            # The leader goes on counting: by the time this gateway leads again, what it knew is stale.
            self._known.clear()
            self._kept.clear()
            self._examiner.keep(())
            await self._lend_baselines(rollouts)
        else:
            failures += await self._lead(rollouts)
        if failures:
            raise failures[0]

    async def _lead(self, rollouts: dict[str, Rollout]) -> list[Exception]:
        """Decides on each rollout, acts, announces what moved; returns the failures, each of one model."""
        around = self._around
        failures: list[Exception] = []
        try:
            await asyncio.to_thread(around.store.obey)
        except (SluiceError, OSError) as error:
            failures.append(error)
        for model in sorted({*around.catalog.names(), *rollouts} - self._frozen):
            try:
                rollouts |= await self._moved_on(model, rollouts.get(model))
            except (SluiceError, OSError) as error:
                failures.append(error)
        examined = (each.id for each in rollouts.values() if each.state.phase is Phase.PREFLIGHT)
        self._examiner.keep(frozenset(examined))
        self._steer(rollouts)
        await around.reconciler.apply(self._wanted(rollouts))
        return failures + await self._announce(rollouts)

    async def _moved_on(self, model: str, rollout: Rollout | None) -> dict[str, Rollout]:
        """The model's rollout after this look, by its name: this one, or one that begins by itself."""
        if (rollout is None or rollout.finished) and model in self._around.catalog.names():
            begun = await asyncio.to_thread(self._newcomers.look, model, self._wall())
            rollout = begun or rollout
        if rollout is None:
            return {}
        if not rollout.finished:
            rollout = await self._decide(rollout)
        if rollout.finished:
            self._known.of(rollout).before = None
        return {model: rollout}

    async def _announce(self, rollouts: Mapping[str, Rollout]) -> list[Exception]:
        """Announces the moves not announced yet, whoever made them. It comes last: nothing is to wait for it.

        How many were announced is stored with the next save: if this gateway ends before that, another one
        announces them once more.
        """
        ended = await asyncio.gather(*map(self._tell, rollouts.values()), return_exceptions=True)
        return [each for each in ended if isinstance(each, Exception)]

    async def _tell(self, rollout: Rollout) -> None:
        for number in range(self._told_of(rollout) + 1, len(rollout.events) + 1):
            await self._around.announcer.moved(rollout, number)
        told = self._known.of(rollout).told = len(rollout.events)
        if rollout.finished and rollout.told < told:
            # No move follows, so nothing else would store it.
            with contextlib.suppress(Conflict):
                await asyncio.to_thread(self._around.store.save, dataclasses.replace(rollout, told=told))

    def _told_of(self, rollout: Rollout) -> int:
        """How many moves of a rollout this gateway, or another one, has announced."""
        return max(rollout.told, self._known.of(rollout).told)

    async def _lend_baselines(self, rollouts: Mapping[str, Rollout]) -> None:
        """Stores what counts as slow, in case the leader has had too few answers of its own to know."""
        for rollout in rollouts.values():
            if rollout.finished or not rollout.seen_at or rollout.latency_limit_s is not None:
                continue
            limit_s = self._latency_limit(rollout)
            if limit_s is not None:
                lent = dataclasses.replace(rollout, latency_limit_s=limit_s)
                with contextlib.suppress(Conflict):
                    await asyncio.to_thread(self._around.store.save, lent)

    def _load(self) -> dict[str, Rollout]:
        store = self._around.store
        loaded = {model: store.load(model) for model in store.models()}
        # Checked afterwards: a record that became unreadable meanwhile must not pass for one that never was.
        self._frozen = frozenset(model for model in loaded if store.unreadable(model))
        return {
            model: rollout
            for model, rollout in loaded.items()
            if rollout is not None and model not in self._frozen
        }

    async def _pin(self, rollouts: Mapping[str, Rollout]) -> list[Exception]:
        """Learns which versions serve the other models; returns the failures, each of one model."""
        # An unreadable model stays as it is here; a gateway that starts now knows of one version at most.
        known = {*rollouts, *(self._frozen & self._around.steering.splits().keys())}
        models = [model for model in self._around.catalog.names() if model not in known]
        return await self._pins.look(models, self._frozen)

    def _steer(self, rollouts: Mapping[str, Rollout]) -> None:
        """Routes as is stored."""
        for model, stable in self._pins.versions.items():
            if model not in rollouts:
                self._around.steering.set_split(model, Split(stable), None)
        for model, rollout in rollouts.items():
            self._around.steering.set_split(model, rollout.split(), rollout.latency_limit_s, rollout.divided)

    async def _decide(self, rollout: Rollout) -> Rollout:
        """The rollout after this look, saved; or as it is stored, if somebody else moved it meanwhile."""
        at = self._wall()
        rollout = self._timed(rollout, at)
        known = self._known.of(rollout)
        baseline, before = known.before, None
        if baseline is not None and baseline.revision == rollout.revision:
            before = baseline.counts
        rollout, counts, blind = await self._observed(rollout, before)
        verdict = await self._verdict(rollout, blind, at)
        after = advance(
            rollout.plan, rollout.state, verdict, rollout.clock_s, float(rollout.evidence.step_requests)
        )
        if moved(rollout.state, after):
            following = rollout.moved(after, verdict, at)
        else:
            following = dataclasses.replace(rollout, state=after)
        following = dataclasses.replace(following, told=self._told_of(rollout))
        try:
            saved = await asyncio.to_thread(self._around.store.save, following)
        except Conflict:
            stored = await asyncio.to_thread(self._around.store.load, rollout.model)
            return rollout if stored is None else stored
        if counts is not None or before is not None:
            upto = remembered({} if baseline is None else baseline.counts, counts or {})
            known.before = Baseline(saved.revision, upto)
        return saved

    def _timed(self, rollout: Rollout, at: float) -> Rollout:
        """The rollout with its clock advanced by the time watched: controllers may be away, clocks may jump.

        Between two looks of this gateway that is by the monotonic clock; if another one looked last, by the
        time of day.
        """
        known, now = self._known.of(rollout), self._clock()
        passed = now - known.looked_at if known.seen_at == rollout.seen_at else at - rollout.seen_at
        known.seen_at, known.looked_at = at, now
        passed = min(max(0.0, passed), _MOST_INTERVALS * self._interval_s)
        passed = passed if rollout.seen_at else 0.0
        state = spent_quietly(rollout.state, passed) if is_quiet(rollout.plan, at) else rollout.state
        clock_s, limit = rollout.clock_s + passed, rollout.latency_limit_s or self._latency_limit(rollout)
        return dataclasses.replace(rollout, state=state, clock_s=clock_s, seen_at=at, latency_limit_s=limit)

    def _latency_limit(self, rollout: Rollout) -> float | None:
        latency = rollout.plan.criteria.latency
        if latency is None or latency.limit_s is not None:
            return None if latency is None else latency.limit_s
        return self._around.steering.stable_p99_s(rollout.model)

    async def _observed(
        self, rollout: Rollout, before: Mapping[str, Counts] | None
    ) -> tuple[Rollout, dict[str, Counts] | None, str | None]:
        """The rollout with this interval's evidence; the counts it now includes; why it is blind, if it is.

        Args:
            rollout: The rollout.
            before: The counts that its evidence includes. None: unknown, since this gateway decides for the
                first time, or the evidence was saved by another one, or by a save of its own that seemed to
                fail. Then an interval is lost, rather than counted twice.
        """
        try:
            counts = await asyncio.to_thread(self._around.source.collect, rollout.model)
        except Unavailable as error:
            return rollout, None, error.message
        if judged_phase(rollout.state) is None:
            return rollout, counts, None
        more = grown(counts, counts if before is None else before)
        tests = ledgers.tests_of(rollout.plan)
        ledger, intervals = to_intervals(rollout, rollout.evidence, more)
        for interval in intervals:
            ledger = ledgers.record(tests, ledger, interval)
        return dataclasses.replace(rollout, ledger=ledger), counts, None

    async def _verdict(self, rollout: Rollout, blind: str | None, at: float) -> Verdict:
        replicas = self._around.reconciler.seen(rollout.model)
        if rollout.state.phase is Phase.PREFLIGHT:
            return replicas_verdict(rollout, replicas) or await self._examiner.examine(rollout)
        told = replicas_verdict(rollout, replicas)
        if rollout.state.phase is Phase.PENDING:
            published = await asyncio.to_thread(self._around.store.published, rollout.model)
            if published and rollout.candidate not in published:
                there = ", ".join(map(str, published))
                text = f"there is no version {rollout.candidate} to be loaded; there are: {there}"
                return _one(Outcome.FAIL, "replicas.no-such-version", text)
            if is_quiet(rollout.plan, at):
                return _one(Outcome.WAIT, "quiet.hours", "it begins when the quiet hours are over")
        if told is not None:
            return told
        verdict = judge(rollout.plan, rollout.evidence, shadow=judged_phase(rollout.state) is Phase.SHADOW)
        if verdict.outcome is Outcome.FAIL:
            return verdict
        doubt = unsure(rollout.plan, blind)
        if doubt is not None:
            return Verdict(Outcome.INCONCLUSIVE, (doubt,))
        if verdict.outcome in (Outcome.PASSED, Outcome.WAIT):
            held = held_back(rollout, at)
            if held is not None:
                return Verdict(Outcome.HOLD, (held, *verdict.reasons))
        return verdict

    def _wanted(self, rollouts: Mapping[str, Rollout]) -> dict[str, Wanted]:
        """What the replicas should hold; for a model without a rollout, the version that serves.

        For a model whose record cannot be read, what they should have held before.
        """
        wanted = {}
        for model in self._around.catalog.names():
            rollout = rollouts.get(model)
            if rollout is not None:
                wanted[model] = self._wanted_of(rollout)
            elif model in self._frozen:
                if model in self._kept:
                    wanted[model] = self._kept[model]
            elif (stable := self._pins.versions.get(model)) is not None:
                wanted[model] = Wanted(self._everywhere(stable), {"stable": stable})
        self._kept |= wanted
        # A config replaces all of the last one: without a version for every model it would unload some.
        return wanted if len(wanted) == len(self._around.catalog.names()) else {}

    def _everywhere(self, version: int) -> Holdings:
        return {replica.address: frozenset((version,)) for replica in self._around.pool.replicas}

    def _wanted_of(self, rollout: Rollout) -> Wanted:
        known, now = self._known.of(rollout), self._clock()
        if known.phase is not rollout.state.phase:
            known.phase, known.entered_at = rollout.state.phase, now
        held = holdings(rollout, self._around.reconciler.seen(rollout.model), now - known.entered_at)
        serving = rollout.candidate if rollout.state.phase in _CANDIDATE_SERVES else rollout.stable
        labels = {"stable": serving}
        if not rollout.finished:
            labels["candidate"] = rollout.candidate
        return Wanted(held, labels)


_CANDIDATE_SERVES = frozenset((Phase.PROMOTING, Phase.PROMOTED))


def _one(outcome: Outcome, code: str, text: str) -> Verdict:
    return Verdict(outcome, (Reason(code, text),))

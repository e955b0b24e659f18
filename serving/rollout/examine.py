"""Runs the preflight: asks replicas for signatures, labels and self-tests, and has the answers judged."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Container

from serving.backends.pool import Pool
from serving.backends.replica import Replica
from serving.catalog import Catalog
from serving.errors import NotFound, SluiceError
from serving.model_version import ModelVersion
from serving.rollout.preflight import SELF_TEST, incompatible, preflight_verdict, relabelled, self_tested
from serving.rollout.record import Rollout
from serving.rollout.verdict import Outcome, Reason, Verdict

# How long one look at the rollouts waits: a candidate that hangs must not hold up others, nor commands.
_PATIENCE_S = 1.0


class Examiner:
    """Examines candidates. What takes longer than a look goes on until `keep` or `close` ends it.

    Args:
        pool: The replicas.
        catalog: What is known of the versions: signatures and labels.
    """

    def __init__(self, pool: Pool, catalog: Catalog) -> None:
        self._pool = pool
        self._catalog = catalog
        self._under_way: dict[str, asyncio.Task[Verdict]] = {}

    def keep(self, ids: Container[str]) -> None:
        """Ends the examinations of all rollouts but these."""
        for id_ in [each for each in self._under_way if each not in ids]:
            self._under_way.pop(id_).cancel()

    async def close(self) -> None:
        """Ends all of them."""
        tasks = list(self._under_way.values())
        self.keep(())
        await asyncio.gather(*tasks, return_exceptions=True)

    async def examine(self, rollout: Rollout) -> Verdict:
        """The verdict of the preflight, as far as it is known now."""
        task = self._under_way.get(rollout.id)
        if task is None:
            task = self._under_way[rollout.id] = asyncio.create_task(self._examined(rollout))
        await asyncio.wait((task,), timeout=_PATIENCE_S)
        if not task.done():
            return Verdict(Outcome.WAIT, (Reason("preflight.waiting", "the self-test is under way"),))
        del self._under_way[rollout.id]
        return task.result()

    async def _examined(self, rollout: Rollout) -> Verdict:
        try:
            stable = self._catalog.version(rollout.model, rollout.stable)
            candidate = self._catalog.version(rollout.model, rollout.candidate)
        except NotFound as error:
            return Verdict(Outcome.WAIT, (Reason("preflight.waiting", error.message),))
        for each in (stable, candidate):
            if not each.described:
                text = f"version {each.version} could not be asked for its labels yet: its describe fails"
                return Verdict(Outcome.WAIT, (Reason("preflight.waiting", text),))
        faults = _misfits(stable, candidate)
        if faults:
            return Verdict(Outcome.FAIL, tuple(faults))
        having = [
            each
            for each in self._pool.replicas
            if each.reachable and each.has(rollout.model, rollout.candidate)
        ]
        least = math.ceil(rollout.plan.preflight.min_replicas * len(having))
        if SELF_TEST not in candidate.signatures:
            text = "signatures fit; the version has no self-test"
            return Verdict(Outcome.PASSED, (Reason("preflight.signatures", text),))
        found = await asyncio.gather(*(self._self_test(rollout, each) for each in having))
        addresses = (each.address for each in having)
        return preflight_verdict(dict(zip(addresses, found, strict=True)), least)

    @staticmethod
    async def _self_test(rollout: Rollout, replica: Replica) -> list[Reason] | SluiceError:
        try:
            return await self_tested(replica.api, rollout.model, rollout.candidate, rollout.plan.preflight)
        except SluiceError as error:
            return error


def _misfits(stable: ModelVersion, candidate: ModelVersion) -> list[Reason]:
    found = [
        Reason("preflight.signatures", f"version {candidate.version} does not fit its callers: {fault}")
        for fault in incompatible(stable.signatures, candidate.signatures)
    ]
    difference = relabelled(stable.labels, candidate.labels)
    if difference is not None:
        found.append(Reason("preflight.labels", f"version {candidate.version}: {difference}"))
    return found

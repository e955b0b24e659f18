"""Notices versions that were published, and lets them in by a rollout if the plan says so."""

from __future__ import annotations

import shlex

import structlog

from serving.rollout.plan import Plan
from serving.rollout.record import Rollout
from serving.rollout.start import serving_version, start
from serving.rollout.store import Store

_log = structlog.get_logger()


class Newcomers:
    """Looks for versions newer than the one that serves.

    Args:
        store: The rollouts.
        plan: What to do about one, and the plan of a rollout that starts by itself.
    """

    def __init__(self, store: Store, plan: Plan) -> None:
        self._store = store
        self._plan = plan
        self._told: set[tuple[str, int]] = set()
        self._settled: dict[str, tuple[int, str | None]] = {}

    def look(self, model: str, at: float) -> Rollout | None:
        """The rollout that started by itself, or None. A version that was tried before is not tried again."""
        stable, last = serving_version(self._store, model), self._store.load(model)
        newest = max(self._store.published(model), default=0)
        if stable is None or newest <= stable or (last is not None and not last.finished):
            return None
        # The history may be long. Nothing is added to it while the last rollout is the same.
        found = newest, None if last is None else last.id
        if self._settled.get(model) == found:
            return None
        tried = any(newest == rollout.candidate for rollout in self._store.history(model))
        if not tried and self._plan.on_new_version == "rollout":
            return start(self._store, model, newest, self._plan, at)
        self._settled[model] = found
        if not tried and (model, newest) not in self._told:
            self._told.add((model, newest))
            _log.info(
                "a new version is there; it waits for a rollout",
                model=model,
                version=newest,
                command=f"sluice rollout start {shlex.quote(model)} --to {newest}",
            )
        return None

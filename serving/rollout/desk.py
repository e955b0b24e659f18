"""The administration of rollouts, by people and programs: what the HTTP and gRPC APIs share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from serving.errors import FailedPrecondition, InvalidInput, NotFound
from serving.rollout.explain import explain
from serving.rollout.feedback import Receipts
from serving.rollout.machine import Command
from serving.rollout.plan import Plan
from serving.rollout.plan_file import parse_plan
from serving.rollout.record import Rollout, to_json
from serving.rollout.start import loaded, order, start
from serving.rollout.store import Store

COMMANDS: Mapping[str, Command] = {
    "pause": "pause",
    "resume": "resume",
    "promote": "promote",
    "abort": "abort",
}


class Desk:
    """Takes orders, answers questions. Everything goes through the store; the controller does the rest.

    Args:
        store: The rollouts.
        receipts: The prediction ids.
        plan: The plan of rollouts that are started without one.
    """

    def __init__(self, store: Store, receipts: Receipts, plan: Plan) -> None:
        self.receipts = receipts
        self._store = store
        self._plan = plan

    async def start(self, model: str, to: int, plan: str | None) -> dict[str, Any]:
        """Starts a rollout; `plan` is YAML, or JSON. Raises as `start.start` and `parse_plan` do."""
        parsed = self._plan if plan is None else parse_plan(plan)
        return summary(await asyncio.to_thread(start, self._store, model, to, parsed, time.time()))

    async def order(self, model: str, what: str, by: str) -> dict[str, Any]:
        """Gives a command; raises as `start.order` does, and InvalidInput for an unknown one."""
        if what not in COMMANDS:
            raise InvalidInput(f'"{what[:100]}" is not a command; there are: {", ".join(COMMANDS)}')
        moved = await asyncio.to_thread(
            lambda: order(self._store, model, COMMANDS[what], by=by, at=time.time())
        )
        return summary(moved)

    async def all(self) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """The newest rollout of each model, in short; and by model, why the other records cannot be read."""
        found, unreadable = await asyncio.to_thread(self._read)
        return [summary(rollout) for rollout in found], unreadable

    def newest(self) -> list[Rollout]:
        """The newest rollout of each model, if its record can be read; reads in the caller's thread."""
        found, _ = self._read()
        return found

    def _read(self) -> tuple[list[Rollout], dict[str, str]]:
        found: list[Rollout] = []
        unreadable: dict[str, str] = {}
        for model in self._store.models():
            try:
                rollout = loaded(self._store, model)
            except FailedPrecondition as error:
                unreadable[model] = error.message
                continue
            if rollout is not None:
                found.append(rollout)
        return found, unreadable

    async def whole(self, model: str, id_: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
        """A rollout of a model, without an id the newest: in short, and as it is stored, with its history.

        Raises:
            NotFound: There is none.
            FailedPrecondition: The newest cannot be read; the message says why.
        """
        if id_:
            past = await asyncio.to_thread(self._store.history, model)
            rollout = next((each for each in past if each.id == id_), None)
        else:
            rollout = await asyncio.to_thread(loaded, self._store, model)
        if rollout is None:
            text = f"had no rollout {id_[:200]}" if id_ else "had no rollout yet"
            raise NotFound(f'model "{model[:200]}" {text}')
        return summary(rollout), {**to_json(rollout), "explanation": list(explain(rollout))}

    async def history(self, model: str) -> list[dict[str, Any]]:
        """A model's rollouts, oldest first, in short."""
        return [summary(rollout) for rollout in await asyncio.to_thread(self._store.history, model)]


def summary(rollout: Rollout) -> dict[str, Any]:
    """A rollout in short."""
    split = rollout.split()
    weight = 1.0 if split.stable == rollout.candidate else split.weight
    return {
        "id": rollout.id,
        "model": rollout.model,
        "stable": rollout.stable,
        "candidate": rollout.candidate,
        "phase": rollout.state.phase.value,
        "step": rollout.state.step,
        "weight": weight,
        "shadow": split.shadow,
        "code": rollout.state.reason.code,
        "reason": rollout.state.reason.text,
        "started_at": rollout.started_at,
    }

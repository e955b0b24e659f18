"""Tells the world of the moves of rollouts: a counter, structured logs, a webhook."""

from __future__ import annotations

import asyncio

import httpx
import structlog
from prometheus_client import CollectorRegistry, Counter

from serving.rollout.machine import weight_of
from serving.rollout.record import Rollout, reason_to_json

_log = structlog.get_logger()

_WEBHOOK_TIMEOUT_S = 5.0


class Announcer:
    """Announces what a controller does.

    Args:
        registry: Where the metrics are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._moves = Counter(
            "sluice_rollout_moves", "Moves of rollouts into a phase.", ("model", "phase"), registry=registry
        )
        self._failures = Counter(
            "sluice_rollout_look_failures",
            "Looks at the rollouts that failed, as on a full disk: nothing moves until one succeeds.",
            registry=registry,
        )

    def look_failed(self, error: Exception) -> None:
        """A look at the rollouts failed."""
        self._failures.inc()
        _log.error("a look at the rollouts failed; the next one tries again", error=str(error))

    async def moved(self, rollout: Rollout, number: int) -> None:
        """A move is made and saved. Waits for a webhook, though not for long.

        A move may be announced twice if the gateway that decides ends just then: receivers can tell by the
            rollout's id and the move's number.

        Args:
            rollout: The rollout after it, or after later ones.
            number: Which of its moves, from 1.
        """
        event = rollout.events[number - 1]
        state = event.after
        self._moves.labels(rollout.model, state.phase.value).inc()
        told = {
            "rollout": rollout.id,
            "move": number,
            "model": rollout.model,
            "stable": rollout.stable,
            "candidate": rollout.candidate,
            "phase": state.phase.value,
            "step": state.step,
            "weight": weight_of(rollout.plan, state),
            "code": state.reason.code,
            "reason": state.reason.text,
        }
        _log.info("a rollout moved", before=event.before.phase.value, outcome=event.outcome, **told)
        if rollout.plan.webhook is None:
            return
        body = told | {"at": event.at, "values": reason_to_json(state.reason)["values"]}
        try:
            # httpx has a limit for each piece of an answer, and none for the whole.
            async with asyncio.timeout(_WEBHOOK_TIMEOUT_S), httpx.AsyncClient() as client:
                answer = await client.post(rollout.plan.webhook, json=body)
            # httpx's own message has the URL, whose secrecy is all that protects many a webhook.
            fault = "" if answer.is_success else f"it answered {answer.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            fault = str(error) or f"no answer within {_WEBHOOK_TIMEOUT_S:g} s"
        if fault:
            _log.warning("the webhook of a rollout was not told", model=rollout.model, error=fault)

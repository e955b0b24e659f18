"""What the page shows: models and versions, rollouts with their evidence, the latest refusals."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import version as distribution_version
from typing import TYPE_CHECKING, Any

from serving.catalog import ModelReport, VersionReport
from serving.errors import SluiceError
from serving.gateway import Gateway
from serving.model_version import ModelVersion
from serving.observed import observed
from serving.page.curves import Curves
from serving.prediction import ModelRef

if TYPE_CHECKING:  # it brings numerics that a gateway without rollouts does not need
    from serving.rollout.record import Rollout


def state(
    gateway: Gateway,
    rollouts: list[Rollout],
    curves: Curves,
    gap: str | None = None,
    wall: Callable[[], float] = time.time,
) -> dict[str, Any]:
    """Everything that the page shows but the answers themselves, as plain values; times in Unix seconds.

    Args:
        gateway: what is shown.
        rollouts: the newest of each model.
        curves: their evidence so far.
        gap: why they cannot be read; None if they can.
        wall: the time of day, in Unix seconds.
    """
    return {
        "now": wall(),
        "release": distribution_version("sluice"),
        "draining": gateway.draining,
        "models": [_model(gateway, each) for each in gateway.catalog.report()],
        "rollouts": [rollout_view(each, curves) for each in rollouts],
        "rollouts_gap": gap,
        **of_one_worker(gateway),
    }


def of_one_worker(gateway: Gateway) -> dict[str, Any]:
    """What each worker of a gateway knows only of itself."""
    most, _ = gateway.admission.limits
    return {
        "in_flight": gateway.admission.in_flight,
        "in_flight_limit": most,
        "refusals": [
            {
                "at": each.at,
                "protocol": each.protocol,
                "model": each.model,
                "version": each.version,
                "outcome": each.outcome,
                "text": each.text,
                "request_id": each.request_id,
            }
            for each in reversed(gateway.journal.refusals)
        ],
    }


def add_worker(shown: dict[str, Any], other: dict[str, Any]) -> None:
    """Add what `of_one_worker` gave of another worker to what is shown."""
    for name in ("in_flight", "in_flight_limit"):
        shown[name] += other[name]
    shown["refusals"] = sorted([*shown["refusals"], *other["refusals"]], key=lambda each: -each["at"])


def _model(gateway: Gateway, report: ModelReport) -> dict[str, Any]:
    known = gateway.catalog.versions(report.name)
    split = gateway.steering.splits().get(report.name)
    serving = known.get(split.stable) if split is not None else _newest(gateway, report.name)
    image = None if serving is None else serving.image
    return {
        "name": report.name,
        "default": report.default,
        "serving": None if serving is None else serving.version,
        "classes": None if image is None else image.classes,
        "input": None
        if image is None
        else {"height": image.spec.height, "width": image.spec.width, "channels": image.spec.channels},
        "versions": [_version(each, known.get(each.version)) for each in report.versions],
    }


def _newest(gateway: Gateway, name: str) -> ModelVersion | None:
    try:
        return gateway.catalog.resolve(ModelRef(name))
    except SluiceError:
        return None


def _version(report: VersionReport, known: ModelVersion | None) -> dict[str, Any]:
    metrics = known.card.get("metrics") if known is not None else None
    accuracy = metrics.get("held_out_accuracy") if isinstance(metrics, dict) else None
    return {
        "version": report.version,
        "state": report.state,
        "available_on": report.available_on,
        "error": report.error,
        "accuracy": accuracy if isinstance(accuracy, int | float) else None,
    }


def rollout_view(rollout: Rollout, curves: Curves) -> dict[str, Any]:
    """One rollout: its traffic, its counts, and its evidence so far."""
    split = rollout.split()
    shown = rollout.state
    return {
        "id": rollout.id,
        "model": rollout.model,
        "stable": rollout.stable,
        "candidate": rollout.candidate,
        "phase": shown.phase.value,
        "finished": rollout.finished,
        "step": shown.step,
        "steps": len(rollout.plan.canary),
        "share": 1.0 if split.stable == rollout.candidate else split.weight,
        "shadow": split.shadow,
        "reason": shown.reason.text,
        "counts": [
            {
                "criterion": name,
                **{f"{arm}_{kind}": count for (arm, kind), count in observed(rollout, name).items()},
            }
            for name in rollout.evidence.criteria
        ],
        "compared": float(rollout.evidence.compared.sum()),
        "agreed": float(rollout.evidence.agreed.sum()),
        "moves": [
            {"at": each.at, "phase": each.after.phase.value, "reason": each.after.reason.text}
            for each in rollout.events
        ],
        "curve": [{"clock_s": clock_s, "evidence": evidence} for clock_s, evidence in curves.of(rollout)],
    }

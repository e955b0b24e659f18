"""`ModelRollout` objects of a Kubernetes cluster: what they hold, what is written to them, and the client."""

from __future__ import annotations

import contextlib
import re
import secrets
from datetime import UTC, datetime
from typing import Any

from lightkube import Client
from lightkube.core.exceptions import ConfigError
from lightkube.generic_resource import create_namespaced_resource
from lightkube.models.meta_v1 import ObjectMeta

from serving.errors import InvalidInput
from serving.rollout.machine import Phase, weight_of
from serving.rollout.plan import Plan
from serving.rollout.record import Rollout, to_json

GROUP, VERSION = "sluice.dev", "v1alpha1"
ModelRollout = create_namespaced_resource(GROUP, VERSION, "ModelRollout", "modelrollouts")
ModelRolloutStatus = ModelRollout.Status

# After this long the API server ends a watch, and it begins again with a list. If a watch has heard nothing
# for `LATE_S` beyond that, its connection is dead: nobody can tell it of its end.
WATCH_S = 30
LATE_S = 10.0


def cluster_client(namespace: str) -> Client:
    """The client of the cluster that KUBECONFIG names or the pod is in.

    Raises:
        InvalidInput: there is none.
    """
    try:
        client = Client(namespace=namespace)
    except ConfigError as error:
        raise InvalidInput(
            f"no cluster can be found ({error}); set KUBECONFIG, or run it in a pod that has its "
            "ServiceAccount's token"
        ) from error
    # lightkube lets a watch read for ever, and has no setting for it.
    client._client._watch_timeout.read = WATCH_S + LATE_S
    return client


def new_object(model: str, version: int, plan: Plan) -> Any:
    """An object that asks for a rollout, with a name of its own."""
    # A name of an object is one of a host (RFC 1123).
    host = re.sub(r"[^a-z0-9-]+", "-", model.lower()).strip("-")[:200] or "model"
    return ModelRollout(
        metadata=ObjectMeta(name=f"{host}-{version}-{secrets.token_hex(3)}"),
        spec={"model": model, "version": version, "plan": plan.model_dump(mode="json")},
    )


def with_status(known: Any, rollout: Rollout) -> Any:
    """A known object with its rollout's status: a write that builds on the object."""
    return ModelRolloutStatus(
        apiVersion=f"{GROUP}/{VERSION}",
        kind="ModelRollout",
        metadata=ObjectMeta(name=rollout.id, resourceVersion=known.metadata.resourceVersion),
        spec=known.spec,
        status=_status(rollout, known),
    )


def state_of(each: Any) -> Any:
    """The record in an object's status, None before a gateway has started on it."""
    return (each.status or {}).get("state")


def order_of(each: Any) -> int:
    """Where an object stands among its versions: etcd's revisions are numbers, though none are promised."""
    with contextlib.suppress(TypeError, ValueError):
        return int(each.metadata.resourceVersion)
    return 0


def age_of(each: Any) -> Any:
    """A key that sorts objects by when they were made."""
    return each.metadata.creationTimestamp, each.metadata.name


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _status(rollout: Rollout, known: Any) -> dict[str, Any]:
    state = rollout.state
    at = rollout.events[-1].at if rollout.events else rollout.started_at
    promoted = state.phase is Phase.PROMOTED
    return {
        "phase": state.phase.value,
        "step": state.step,
        "weight": weight_of(rollout.plan, state),
        "stableVersion": rollout.candidate if promoted else rollout.stable,
        "reason": state.reason.text,
        "observedGeneration": known.metadata.generation or 0,
        "enteredAt": _time(at),
        "finishedAt": _time(at) if rollout.finished else None,
        "state": to_json(rollout),
        "conditions": [
            {
                "type": "Finished",
                "status": "True" if rollout.finished else "False",
                "reason": "".join(part.title() for part in state.phase.value.split("_")),
                "message": state.reason.text[:32768],
                "lastTransitionTime": _time(at),
            }
        ],
    }

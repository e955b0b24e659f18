"""Which version answers a request, and how its time counts in the model's rollout."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serving.catalog import Catalog, ModelVersion
from serving.errors import DeadlineExceeded
from serving.prediction import ModelRef, RequestContext
from serving.rollout.steering import Steering


def choose_version(
    steering: Steering, catalog: Catalog, ref: ModelRef, context: RequestContext
) -> ModelVersion:
    """The version that `ref` names, or else the one that the model's rollout chooses for this caller.

    Raises:
        NotFound, Unavailable: as `Catalog.resolve` does.
    """
    if ref.version is not None:
        return catalog.resolve(ref)
    name = catalog.resolve_name(ref.name)
    key = context.routing_key or context.request_id
    route = context.route = steering.route(name, key, keyed=context.keyed)
    if route is None:
        return catalog.resolve(ref)
    if route.arm == "candidate" and route.version not in catalog.versions(name):
        # No replica has it at the moment: stable answers, and neither is to blame.
        context.route = None
        return catalog.resolve_routed(name, steering.splits()[name].stable)
    return catalog.resolve_routed(name, route.version)


@contextmanager
def measured(
    steering: Steering, model: ModelVersion, context: RequestContext, clock: Callable[[], float]
) -> Iterator[None]:
    """Counts a routed request's time, from the choice of its version to its answer."""
    started = clock()
    try:
        yield
    except (DeadlineExceeded, asyncio.CancelledError):
        if clock() >= context.deadline:
            steering.answered(model.name, context.route, clock() - started, late=True)
        raise
    steering.answered(model.name, context.route, clock() - started, late=False)

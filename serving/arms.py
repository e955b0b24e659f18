"""Which version answers a request, how it counts in the model's rollout, and how feedback will find it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from serving.backends.replica import FAIR_TIME_S
from serving.catalog import Catalog
from serving.errors import DeadlineExceeded, Unavailable
from serving.model_version import ModelVersion
from serving.prediction import ClassScore, ImageResult, ModelRef, RequestContext
from serving.rollout.steering import MODEL_FAULTS, Steering
from serving.routing import Route

if TYPE_CHECKING:  # it brings numerics that a gateway without rollouts does not need
    from serving.rollout.desk import Desk


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
    # Without a caller's routing key each request is routed on its own, even if many share an id: all of a
    # caller's, or of a stream.
    key = context.routing_key if context.keyed else f"{context.request_id} {context.started}"
    route = context.route = steering.route(name, key, keyed=context.keyed)
    if route is None:
        return catalog.resolve(ref)
    try:
        return catalog.resolve_routed(name, route.version)
    except Unavailable:
        stand_in = _stand_in(steering, catalog, name, route)
        if stand_in is None:
            raise
    context.route = None  # whatever becomes of it is neither version's fault
    return stand_in


def _stand_in(steering: Steering, catalog: Catalog, name: str, route: Route) -> ModelVersion | None:
    """The version that answers while no replica has the routed one.

    It works both ways: while a promotion is undone, stable has yet to be loaded again, and the candidate is
    better than nothing. A stable version that replicas do have will be known in a moment, and is waited for.
    """
    split, there = steering.splits()[name], catalog.versions(name)
    if route.arm == "candidate":
        return there.get(split.stable)
    if split.candidate is None or catalog.is_there(name, split.stable):
        return None
    return there.get(split.candidate)


@contextmanager
def measured(
    steering: Steering, model: ModelVersion, context: RequestContext, clock: Callable[[], float]
) -> Iterator[None]:
    """Counts a routed request's time, from the choice of its version to its answer."""
    started = clock()
    try:
        yield
    except (DeadlineExceeded, asyncio.CancelledError) as error:
        duration_s = clock() - started
        if clock() >= context.deadline:
            steering.answered(model.name, context.route, duration_s, late=True)
        elif isinstance(error, asyncio.CancelledError):
            steering.left(model.name, context.route, duration_s)
        raise
    steering.answered(model.name, context.route, clock() - started, late=False)


def is_at_fault(
    answers: Iterable[asyncio.Future[Any]], context: RequestContext, asked_at: float, now: float
) -> bool:
    """Whether the version failed by a fault of its own, so that a copy may show whether the other does too.

    What can befall either version (no replica could be reached, one was full) is no fault. A deadline is one,
    as for a copy (`Dispatcher.copied_labels`), if a replica had the request for a fair time.

    Args:
        answers: Its answer to each image, as far as there is one.
        context: The request.
        asked_at: When the images were queued, on the monotonic clock, in seconds.
        now: The time, on the same clock.
    """
    errors = [each.exception() for each in answers if each.done() and not each.cancelled()]
    if any(isinstance(error, MODEL_FAULTS) for error in errors):
        return True
    had_s = now - asked_at - context.stages_s.get("queue", math.inf)
    return now >= context.deadline and had_s > FAIR_TIME_S


def receipted(
    desk: Desk | None, model: ModelVersion, classes: Sequence[ClassScore], context: RequestContext
) -> ImageResult:
    """An image's classes as its result, with the id that feedback names where feedback is taken."""
    if desk is None:
        return ImageResult(classes)
    id_ = desk.receipts.issue(
        model.name,
        model.version,
        classes[0].label,
        routed=context.route is not None,
        copied=next(context.copied, ""),
    )
    return ImageResult(classes, prediction_id=id_)

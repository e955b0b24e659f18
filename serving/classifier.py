"""What happens to images once their version is chosen: decode, batch, ask a replica, name the classes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from serving.arms import is_at_fault, measured, receipted
from serving.backends.pool import Slot
from serving.batching import Batcher, LaneKey
from serving.decoding import Decoded, Decoders
from serving.dispatch import Dispatcher
from serving.errors import Internal, SluiceError
from serving.journal import Journal
from serving.model_version import ModelVersion
from serving.prediction import ImageResult, Prediction, RequestContext
from serving.rollout.steering import Steering
from serving.scores import best_of_each, checked_top_k, labels_of
from serving.settings import Settings
from serving.telemetry.metrics import Metrics

if TYPE_CHECKING:  # it brings numerics that a gateway without rollouts does not need
    from serving.rollout.desk import Desk


class Classifier:
    """Classifies images by a version of a model.

    Args:
        settings: limits and defaults.
        decoders: files to pixels.
        batcher: pixels to scores.
        dispatcher: asks replicas outside the batches, for comparison.
        steering: what a rollout is told of each answer.
        journal: where stages are written down.
        metrics: where images and predictions are counted.
    """

    def __init__(
        self,
        settings: Settings,
        decoders: Decoders,
        batcher: Batcher[Slot],
        dispatcher: Dispatcher,
        steering: Steering,
        journal: Journal,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._decoders = decoders
        self._batcher = batcher
        self._dispatcher = dispatcher
        self._steering = steering
        self._journal = journal
        self._metrics = metrics

    async def classify(
        self,
        model: ModelVersion,
        images: Sequence[bytes],
        top_k: int | None,
        context: RequestContext,
        *,
        desk: Desk | None,
    ) -> Prediction:
        """Classify encoded image files by a version; an image that cannot be has its error as its result.

        Args:
            model: the version that was chosen.
            images: the files.
            top_k: how many classes of each image to give; None: the default.
            context: the request's.
            desk: where feedback is taken; None: nowhere.

        Raises:
            InvalidInput: `top_k` is beyond the classes.
            FailedPrecondition: the model does not take images.
            Unavailable, Overloaded, DeadlineExceeded, Internal …: no replica could answer.
        """
        context.answered_by = (model.name, str(model.version))
        count = checked_top_k(top_k, model, self._settings.default_top_k)
        lane = LaneKey(model.name, model.version)
        with measured(self._steering, model, context, time.monotonic):
            self._batcher.check(lane, context)
            decoded = await self._decode(images, model, context)
            # Again: in a sudden rush many pass the first check together, before any of them is queued.
            self._batcher.check(lane, context)
            pixels_of = [pixels for pixels in decoded if isinstance(pixels, np.ndarray)]
            rows = await self._score(model, pixels_of, context)
        named = iter(await best_of_each(rows, model.labels, count))
        found = (next(named) if isinstance(pixels, np.ndarray) else pixels for pixels in decoded)
        results = tuple(
            ImageResult(error=each)
            if isinstance(each, SluiceError)
            else receipted(desk, model, each, context)
            for each in found
        )
        chosen = [result.classes[0].index for result in results if result.classes]
        self._metrics.images.labels(model.name, str(model.version)).inc(len(chosen))
        self._metrics.predicted(model.name, model.version, model.labels, model.card, chosen)
        return Prediction(model.name, model.version, results)

    async def _score(
        self, model: ModelVersion, images: Sequence[np.ndarray], context: RequestContext
    ) -> list[np.ndarray]:
        """The scores of each image, float32 [K]; a rollout may have them compared with the candidate's."""
        lane, asked_at = LaneKey(model.name, model.version), time.monotonic()
        pending = [self._batcher.enqueue(lane, each, context) for each in images]
        rows: list[np.ndarray] | None = None
        try:
            # A `gather` for a single future costs as much as that image's place in a batch.
            rows = [await pending[0]] if len(pending) == 1 else await asyncio.gather(*pending)
        finally:
            for future in pending:  # when one fails or the caller leaves, the rest must not be computed
                future.cancel()
            if rows is None:
                self._batcher.abandoned(lane, len(pending))
            if images and (rows is not None or is_at_fault(pending, context, asked_at, time.monotonic())):
                context.copied = self._steering.copy(
                    model.name,
                    context.route,
                    self._named(model, rows, context),
                    lambda version: self._dispatcher.copied_labels(
                        model.name, version, images, context.deadline - context.started
                    ),
                )
        return rows

    @staticmethod
    def _named(
        model: ModelVersion, rows: list[np.ndarray] | None, context: RequestContext
    ) -> list[str] | None:
        """The labels to compare the candidate's with; None if stable was at fault, or there is no copy."""
        if rows is None or context.route is None or context.route.shadow is None:
            return None
        try:
            return labels_of(rows, model.labels)
        except Internal:
            return None

    async def _decode(
        self, images: Sequence[bytes], model: ModelVersion, context: RequestContext
    ) -> list[Decoded]:
        """Each image as uint8 [H,W,C], or the error that it met."""
        spec = model.require_image().spec
        started = time.monotonic()
        decoded = await self._decoders.decode(
            images, spec, max_pixels=self._settings.max_image_pixels, caller=context.caller
        )
        self._journal.stage(context, "decode", time.monotonic() - started)
        return decoded

"""Takes batches of images, and whole calls, to the replicas."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from serving.backends.hedging import HedgeTimes
from serving.backends.pool import Pool, Slot
from serving.backends.replica import FAIR_TIME_S, Call
from serving.backends.tfserving import TensorFlowServing
from serving.batching import Entry, LaneKey
from serving.catalog import Catalog
from serving.errors import DeadlineExceeded, Internal, Overloaded, SluiceError
from serving.journal import Journal
from serving.model_version import ModelVersion
from serving.prediction import RequestContext
from serving.rollout.steering import MODEL_FAULTS, Steering
from serving.scores import classify_request, labels_of, no_numbers, padded, read_scores, with_numbers
from serving.settings import Settings
from serving.telemetry.tracing import Trace

Result = TypeVar("Result")


class _Scores:
    """A call for the scores of a batch, float32 [N,K]; raises Internal if it has no numbers for any image.

    Attributes:
        blank: the scores of the last replica that had no numbers; None: every one that answered had some.
    """

    def __init__(self, request: Any, output: str, shape: tuple[int, int], trace: Trace | None) -> None:
        self._request = request
        self._output = output
        self._shape = shape
        self._trace = trace
        self.blank: np.ndarray | None = None

    async def __call__(self, api: TensorFlowServing, timeout_s: float) -> np.ndarray:
        response = await api.predict(self._request, timeout_s, self._trace)
        scores = read_scores(response, self._output, self._shape)
        if not with_numbers(scores).any():
            self.blank = scores
            raise no_numbers()
        return scores


def _model_specs(request: Any) -> list[Any]:
    """Every ModelSpec of a request: its own or, of a MultiInferenceRequest, its tasks'."""
    if hasattr(request, "tasks"):
        return [task.model_spec for task in request.tasks]
    return [request.model_spec]


class Dispatcher:
    """Makes calls on replicas, and reports them to rollouts and the journal.

    Args:
        settings: sizes and times.
        pool: the replicas.
        catalog: what is known of their models.
        steering: what counts calls as evidence in rollouts.
        journal: where stages are written down.
    """

    def __init__(
        self,
        settings: Settings,
        pool: Pool,
        catalog: Catalog,
        steering: Steering,
        journal: Journal,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._catalog = catalog
        self._steering = steering
        self._journal = journal
        self._hedges = HedgeTimes() if settings.hedge else None

    async def ask(self, method: str, model: ModelVersion, request: Any, context: RequestContext) -> Any:
        """Have a replica answer a call of TensorFlow Serving's PredictionService, which goes out by itself.

        Args:
            method: `Predict`, `Classify`, `Regress`, `MultiInference` or `GetModelMetadata`.
            model: the version that answers.
            request: the call's message; its model specs are filled in.
            context: whose request it is.

        Returns:
            The call's response.

        Raises:
            SluiceError: as `Pool.call` does.
        """
        for spec in _model_specs(request):
            spec.name = model.name
            spec.version.value = model.version
        self._journal.has_read(context)
        started, trace = time.monotonic(), self._journal.calling([context])
        response = await self._call(
            LaneKey(model.name, model.version),
            lambda api, timeout_s: api.ask(method, request, timeout_s, trace),
            deadline=context.deadline,
            # A caller's own tensors may be the caller's fault; only an error that no request excuses counts.
            faults=(Internal,) if context.route is not None and method != "GetModelMetadata" else None,
        )
        self._journal.called(model.name, model.version, [context], time.monotonic() - started, trace)
        return response

    async def _call(
        self,
        lane: LaneKey,
        call: Call[Result],
        *,
        deadline: float,
        faults: tuple[type[SluiceError], ...] | None,
        slot: Slot | None = None,
        patience_s: float | None = None,
        hedge_after_s: float | None = None,
        is_sound: Callable[[Result], bool] = lambda _answer: True,
    ) -> Result:
        """Make a call on a replica, as `Pool.call` does.

        If `faults` are given, the call counts as evidence in a rollout: bad if it fails by one of them, or if
        its answer is not sound.
        """

        def make(attempt: Call[Result]) -> Awaitable[Result]:
            return self._pool.call(
                *lane,
                attempt,
                deadline=deadline,
                slot=slot,
                patience_s=patience_s,
                hedge_after_s=hedge_after_s,
            )

        if faults is None:
            return await make(call)
        return await self._steering.call(*lane, call, make, faults=faults, is_sound=is_sound)

    async def send(
        self, lane: LaneKey, batch: Sequence[Entry], slot: Slot, patience_s: float | None
    ) -> np.ndarray:
        """Ask a replica for the scores of a batch: float32 [N,K].

        An answer that cannot be read, or has no numbers for any image, is a fault of the replica, and another
        one is asked. If that has none either, rows without numbers are returned: it may be the images.
        """
        started = time.monotonic()
        for entry in batch:
            self._journal.stage(entry.context, "queue", started - entry.enqueued)
        model = self._catalog.version(lane.model, lane.version)
        images = padded([entry.pixels for entry in batch], self._settings.batch_sizes)
        image, request = classify_request(model, images)

        contexts = [entry.context for entry in batch]
        trace = self._journal.calling(contexts)
        asked = _Scores(request, image.output_name, (len(images), image.classes), trace)
        kind = lane, len(images)
        try:
            scores = await self._call(
                lane,
                asked,
                deadline=max(context.deadline for context in contexts),
                faults=MODEL_FAULTS if any(entry.routed for entry in batch) else None,
                slot=slot,
                patience_s=patience_s,
                hedge_after_s=None if self._hedges is None else self._hedges.after_s(kind),
                # An image without numbers loses only its own answer, but it is the version's fault.
                is_sound=lambda scores: bool(with_numbers(scores[: len(batch)]).all()),
            )
        except Internal:
            if asked.blank is None:
                raise
            scores = asked.blank
        took_s = time.monotonic() - started
        if self._hedges is not None:
            self._hedges.learn(kind, took_s)
        self._journal.called(lane.model, lane.version, contexts, took_s, trace)
        return scores[: len(batch)]

    async def copied_labels(
        self, name: str, version: int, images: Sequence[np.ndarray], timeout_s: float
    ) -> list[str]:
        """The label that a version gives each image of a copied request, to be compared and never returned.

        Args:
            name: the model.
            version: its version.
            images: each uint8 [H,W,C].
            timeout_s: how long the copied request had; the copy has as long, but at least a second.

        Raises:
            DeadlineExceeded: a replica had the copy for a fair time, and gave no answer.
            Overloaded: there was no such time left once a replica was free.
            SluiceError: as `Pool.call` does.
        """
        model = self._catalog.version(name, version)
        image, request = classify_request(model, images)
        given_s = 0.0

        async def ask(api: TensorFlowServing, timeout_s: float) -> Any:
            nonlocal given_s
            given_s = timeout_s
            return await api.predict(request, timeout_s)

        try:
            deadline = time.monotonic() + max(timeout_s, FAIR_TIME_S)
            response = await self._pool.call(name, version, ask, deadline=deadline)
        except DeadlineExceeded as error:
            if given_s > FAIR_TIME_S:
                raise
            raise Overloaded("no replica was free in time for a copy", stage="backend") from error
        scores = read_scores(response, image.output_name, (len(images), image.classes))
        return labels_of(list(scores), model.labels)

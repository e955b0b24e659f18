"""The one path of a request: it is admitted, a version is chosen, and that version answers it.

Transports translate to and from what is here, and add nothing of their own. The steps, in order:

1. `Gateway.request` admits it (`serving.admission`; `serving.pressure` where memory is limited), and records
   how it ends (`serving.journal`);
2. `Gateway._routed` finds its version (`serving.arms`, `serving.catalog`), and enforces its deadline;
3. images go through `serving.classifier`: decoded, batched, scored by a replica, given their labels; many of
   them in parts (`serving.parts`). Calls that bring tensors go straight to a replica (`ask`,
   `serving.dispatch`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from serving.access.callers import Callers
from serving.access.keys import Scope
from serving.admission import Admission, Ticket
from serving.arms import choose_version
from serving.backends.pool import Pool
from serving.batching import Batcher
from serving.catalog import Catalog
from serving.classifier import Classifier
from serving.concurrency import ConcurrencyLimit, Work
from serving.decoding import Decoders
from serving.dispatch import Dispatcher
from serving.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidInput,
    NotFound,
    Unavailable,
    out_of_memory,
)
from serving.journal import Journal
from serving.memory import Usage, fitting
from serving.model_version import ModelVersion
from serving.parts import Part, in_parts
from serving.prediction import ModelRef, Prediction, RequestContext
from serving.pressure import Pressure
from serving.rollout.steering import Steering
from serving.settings import Settings
from serving.telemetry.metrics import Metrics
from serving.tensorflow_api import check_shapes
from serving.threads import Args, Threads

if TYPE_CHECKING:  # it brings numerics that a gateway without rollouts does not need
    from serving.rollout.desk import Desk

Result = TypeVar("Result")


class Gateway:
    """Answers with the models behind a pool. Use as an async context manager.

    Args:
        settings: limits and sizes.
        pool: the replicas.
        catalog: what is known of their models.
        metrics: what to measure with.
        callers: who may use it; None: anyone.

    Attributes:
        draining: whether it is shutting down: not ready, but everything that still comes is answered.
        steering: routes requests that name no version, where rollouts say how.
        desk: where rollouts are administered and feedback is taken; None without rollouts.
        pressure: decides what is let in while memory is short; None: the process has no memory limit.
    """

    def __init__(
        self,
        settings: Settings,
        pool: Pool,
        catalog: Catalog,
        metrics: Metrics,
        callers: Callers | None = None,
    ) -> None:
        self.settings = settings
        self.catalog = catalog
        self.metrics = metrics
        usage = Usage(settings.max_memory_bytes)
        refused = metrics.refused.labels("memory").inc
        self.pressure = Pressure(usage.left, settings.max_body_bytes, refused) if usage.limited else None
        self.admission = Admission(
            max_in_flight=settings.max_in_flight,
            max_in_flight_bytes=fitting(settings.max_in_flight_bytes, usage.bounds()),
            metrics=metrics,
            callers=callers,
            limit=lambda: ConcurrencyLimit(
                settings.target_latency_s,
                floor=lambda: 2 * settings.max_batch * max(1, len(pool.replicas)),
                ceiling=settings.max_in_flight,
            ),
            models=lambda: len(catalog.names()),
        )
        if self.pressure is not None:
            self.pressure.busy = lambda: self.admission.in_flight > 0
        self.journal = Journal.from_settings(settings, metrics)
        self.draining = False
        self.steering = Steering()
        self.desk: Desk | None = None
        self.pool = pool
        self._decoders = Decoders(settings.decode_threads, self.pressure)
        self._threads = Threads(settings.decode_threads, "parse")
        self._dispatcher = Dispatcher(settings, pool, catalog, self.steering, self.journal)
        self.batcher = Batcher(
            self._dispatcher.send,
            lambda lane: pool.book(*lane),
            max_batch=settings.max_batch,
            target_s=settings.target_latency_s,
            left=lambda lane, size, reason: self.journal.batch_left(lane.model, size, reason),
        )
        pool.freed = self.batcher.take_turns
        self.steering.busy = lambda: self.batcher.depth() > 0
        self._classifier = Classifier(
            settings,
            self._decoders,
            self.batcher,
            self._dispatcher,
            self.steering,
            self.journal,
            metrics,
        )

    async def __aenter__(self) -> Self:
        await self.batcher.__aenter__()
        await self.steering.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.steering.__aexit__(kind, error, traceback)
        await self.batcher.__aexit__(kind, error, traceback)
        self._decoders.close()
        self._threads.close()
        await asyncio.to_thread(self.journal.close)

    @contextmanager
    def request(self, context: RequestContext, ref: ModelRef, scope: Scope = "classify") -> Iterator[Ticket]:
        """The span of one request, from its arrival to its answer: admitted, and counted as it ends.

        Raises:
            Unauthenticated, PermissionDenied: the caller may not do what needs `scope`.
            RateLimited, Overloaded: the caller is over its limits, or there is no room, or no memory.
        """
        with (
            self.journal.recorded(context, lambda: self._asked_for(ref)),
            self._admit(context, scope, ref) as ticket,
        ):
            context.caller = ticket.caller.name
            self.journal.admitted(context)
            try:
                yield ticket
            except MemoryError:
                raise out_of_memory() from None

    def _admit(self, context: RequestContext, scope: Scope, ref: ModelRef) -> Ticket:
        # What comes over gRPC has passed this check before its message was read.
        if self.pressure is not None and context.protocol == "http":
            self.pressure.check(time.monotonic())
        return self.admission.admit(context.credential, scope, self._asked_for(ref))

    def _asked_for(self, ref: ModelRef) -> str | None:
        """The model that a caller means, the default one if it names none; None if there is no such model."""
        name = ref.name or self.catalog.default_name()
        return name if name in self.catalog.names() else None

    async def classify(
        self, ref: ModelRef, images: Sequence[bytes], top_k: int | None, context: RequestContext
    ) -> Prediction:
        """Classify encoded image files.

        An image that cannot be decoded, or whose scores are not numbers, has its error as its result, and the
        others have their classes. If the model gave no image numbers, the request fails.

        Raises:
            NotFound: no such model or version; the text names those that exist.
            InvalidInput: no image, too many, or `top_k` beyond the classes.
            FailedPrecondition: the model does not take images.
            Unavailable, Overloaded, DeadlineExceeded, Internal: the replicas could not answer.
        """
        self.check_number(len(images))
        self.journal.has_read(context)
        with self._progress(ref, context) as work:
            prediction = await self._classify(work, ref, images, top_k, context)
        first = prediction.results[0].error
        if first is not None and all(isinstance(each.error, Internal) for each in prediction.results):
            raise first
        return prediction

    def check_number(self, images: int) -> None:
        """Raise InvalidInput unless a request may have this many images."""
        if not images:
            raise InvalidInput("the request has no image; send at least one", stage="decode")
        if images > self.settings.max_images:
            raise InvalidInput(
                f"the request has {images} images; at most {self.settings.max_images} are allowed",
                stage="admission",
            )

    async def _classify(
        self, work: Work, ref: ModelRef, images: Sequence[bytes], top_k: int | None, context: RequestContext
    ) -> Prediction:
        async def answer(model: ModelVersion) -> Prediction:
            work.by(model.version)
            return await self._classifier.classify(model, images, top_k, context, desk=self.desk)

        return await self._routed(ref, context, answer)

    def classify_in_parts(
        self, ref: ModelRef, images: Sequence[bytes], top_k: int | None, context: RequestContext
    ) -> AsyncGenerator[Part, None]:
        """Classify as `classify` does, a batch at a time: yields where a part begins, and its results.

        See `serving.parts.in_parts`; the request is in progress until the last part is done.
        """
        self.check_number(len(images))
        self.journal.has_read(context)
        work = self._progress(ref, context)

        async def classify(ref: ModelRef, images: Sequence[bytes]) -> Prediction:
            return await self._classify(work, ref, images, top_k, context)

        return in_parts(classify, ref, images, self.settings.max_batch, work)

    async def ask(
        self,
        method: str,
        ref: ModelRef,
        prepare: Callable[[ModelVersion], Awaitable[Any]],
        context: RequestContext,
    ) -> Any:
        """Have a replica answer a call of TensorFlow Serving's PredictionService, routed as images are.

        The call goes straight to a replica: what a caller has put into one request is a batch already.

        Args:
            method: `Predict`, `Classify`, `Regress`, `MultiInference` or `GetModelMetadata`.
            ref: the model and version that the caller asks for.
            prepare: makes the call's message for the version that answers; its model specs are filled in.
            context: whose request it is.

        Returns:
            The call's response; its model spec names the version that gave it.

        Raises:
            NotFound: no such model or version; the text names those that exist.
            InvalidInput, FailedPrecondition …: what the replica says of the request.
            Unavailable, Overloaded, DeadlineExceeded, Internal: the replicas could not answer.
        """
        work = self._progress(ref, context)

        async def answer(model: ModelVersion) -> Any:
            work.by(model.version)
            context.answered_by = (model.name, str(model.version))
            request = await prepare(model)
            if method == "Predict":
                check_shapes(model, request)
            return await self._dispatcher.ask(method, model, request, context)

        with work:
            return await self._routed(ref, context, answer)

    async def in_thread(self, work: Callable[[*Args], Result], *args: *Args) -> Result:
        """Do work that takes a while, such as parsing a large body, off the event loop: `Threads.run`."""
        return await self._threads.run(work, *args)

    async def resolve(self, ref: ModelRef, context: RequestContext) -> ModelVersion:
        """What is known of the version that `ref` is routed to; raises as `ask` does."""

        async def itself(model: ModelVersion) -> ModelVersion:
            return model

        return await self._routed(ref, context, itself)

    def require_desk(self) -> Desk:
        """Where rollouts are administered; raises FailedPrecondition if the gateway runs without them."""
        if self.desk is None:
            raise FailedPrecondition("this gateway runs without rollouts; start it with rollout_store set")
        return self.desk

    async def reload_config(self, config: Any, context: RequestContext) -> None:
        """Give every replica a new model configuration (ModelServerConfig), and serve the models in it.

        Raises:
            FailedPrecondition, InvalidInput …: what a replica says of it; others may have taken it.
        """
        await self.pool.reload_config(config, context.deadline - time.monotonic())
        self.catalog.set_models(each.name for each in config.model_config_list.config)

    def _progress(self, ref: ModelRef, context: RequestContext) -> Work:
        """Room for the work on a request; raises NotFound or InvalidInput if there is no such model."""
        return self.admission.progress(context.caller, self.catalog.resolve_name(ref.name))

    async def _routed(
        self, ref: ModelRef, context: RequestContext, answer: Callable[[ModelVersion], Awaitable[Result]]
    ) -> Result:
        """Answer by the version that `ref` is routed to, before the deadline.

        If that version was unloaded meanwhile, it is tried once more, unless the caller named it by number.
        """
        try:
            async with asyncio.timeout(context.deadline - time.monotonic()):
                model = await self._resolved(ref, context)
                try:
                    return await answer(model)
                except NotFound:
                    if ref.version is not None:
                        raise
                await self.catalog.refreshed()
                return await answer(await self._chosen(ref, context))
        except TimeoutError:
            raise DeadlineExceeded("the request's deadline passed before its answer") from None

    async def _resolved(self, ref: ModelRef, context: RequestContext) -> ModelVersion:
        """The version that `ref` is routed to now.

        If there is none although replicas answer, they may have swapped versions or moved a label since they
        were last asked; and a gateway that has only just started has not asked them yet.
        """
        self.catalog.resolve_name(ref.name)
        try:
            return await self._chosen(ref, context)
        except Unavailable:
            if self.catalog.asked and not self.pool.reachable():
                raise
        except NotFound as error:
            if not ref.label or error.label:
                raise
        await self.catalog.refreshed()
        return await self._chosen(ref, context)

    async def _chosen(self, ref: ModelRef, context: RequestContext) -> ModelVersion:
        if ref.label:
            split = self.steering.splits().get(self.catalog.resolve_name(ref.name))
            ref = await self.catalog.labelled(ref, None if split is None else split.stable)
        return choose_version(self.steering, self.catalog, ref, context)

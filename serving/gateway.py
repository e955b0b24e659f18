"""The one path of a request: route, decode, batch, ask a replica, name the classes.

Transports translate to and from what is here, and add nothing of their own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from serving import protos, tensors
from serving.admission import Admission, Ticket
from serving.backends.pool import Pool
from serving.batching import Batcher, Entry, LaneKey
from serving.callers import Callers
from serving.catalog import CLASSIFY_SIGNATURE, Catalog, ModelVersion
from serving.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidInput,
    NotFound,
    SluiceError,
    Unavailable,
)
from serving.images import decode
from serving.keys import Scope
from serving.prediction import ClassScore, ImageResult, ModelRef, Prediction, RequestContext
from serving.settings import Settings
from serving.telemetry import Metrics

Result = TypeVar("Result")


class Gateway:
    """Answers with the models behind a pool. Use as an async context manager.

    Args:
        settings: limits and sizes.
        pool: the replicas.
        catalog: what is known of their models.
        metrics: what to measure with.
        callers: who may use it; None: anyone.
        clock: the monotonic clock, in seconds; deadlines are on it.

    Attributes:
        draining: whether it is shutting down: not ready, but everything that still comes is answered.
    """

    def __init__(
        self,
        settings: Settings,
        pool: Pool,
        catalog: Catalog,
        metrics: Metrics,
        callers: Callers | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.catalog = catalog
        self.metrics = metrics
        self.admission = Admission(
            max_in_flight=settings.max_in_flight,
            max_in_flight_bytes=settings.max_in_flight_bytes,
            metrics=metrics,
            callers=callers,
        )
        self.draining = False
        self._pool = pool
        self._clock = clock
        self._decoders = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")
        self._batcher = Batcher(
            self._send, lambda lane: pool.capacity(*lane), max_batch=settings.max_batch, clock=clock
        )

    async def __aenter__(self) -> Self:
        await self._batcher.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._batcher.__aexit__(kind, error, traceback)
        self._decoders.shutdown(cancel_futures=True)

    @contextmanager
    def request(self, context: RequestContext, ref: ModelRef, scope: Scope = "classify") -> Iterator[Ticket]:
        """The span of one request, from its arrival to its answer: admitted, and counted as it ends.

        Raises:
            Unauthenticated, PermissionDenied: the caller may not do what needs `scope`.
            RateLimited, Overloaded: the caller is over its limits, or there is no room.
        """
        outcome = "ok"
        try:
            with self.admission.admit(context.credential, scope) as ticket:
                yield ticket
        except SluiceError as error:
            outcome = error.kind
            raise
        except asyncio.CancelledError:
            outcome = Cancelled.kind
            raise
        except BaseException:
            outcome = Internal.kind
            raise
        finally:
            model, version = context.answered_by or (self._bounded(ref.name), "")
            self.metrics.requests.labels(context.protocol, model, version, outcome).inc()
            self.metrics.request_seconds.labels(context.protocol, model, version).observe(
                self._clock() - context.started
            )

    def _bounded(self, name: str | None) -> str:
        return name if name in self.catalog.names() else ""

    async def classify(
        self, ref: ModelRef, images: Sequence[bytes], top_k: int | None, context: RequestContext
    ) -> Prediction:
        """Classify encoded image files.

        An image that cannot be decoded gets its error as its result, and the others their classes.

        Raises:
            NotFound: no such model or version; the text names those that exist.
            InvalidInput: no image, too many, or `top_k` beyond the classes.
            FailedPrecondition: the model does not take images.
            Unavailable, Overloaded, DeadlineExceeded, Internal: the replicas could not answer.
        """
        if not images:
            raise InvalidInput("the request has no image; send at least one", stage="decode")
        if len(images) > self.settings.max_images:
            raise InvalidInput(
                f"the request has {len(images)} images; at most {self.settings.max_images} are taken",
                stage="admission",
            )
        return await self._routed(
            ref, context, lambda model: self._classify_with(model, images, top_k, context)
        )

    async def classify_in_parts(
        self, ref: ModelRef, images: Sequence[bytes], top_k: int | None, context: RequestContext
    ) -> AsyncIterator[tuple[int, Prediction]]:
        """Classify as `classify` does, a batch at a time: yields where a part begins, and its results.

        Parts come as they are done, in any order, and all by the version that answered the first.
        """
        size = self.settings.max_batch
        first = await self.classify(ref, images[:size], top_k, context)
        yield 0, first
        pinned = ModelRef(first.model, first.version)

        async def part(start: int) -> tuple[int, Prediction]:
            return start, await self.classify(pinned, images[start : start + size], top_k, context)

        parts = [asyncio.ensure_future(part(start)) for start in range(size, len(images), size)]
        try:
            for done in asyncio.as_completed(parts):
                yield await done
        finally:
            for each in parts:
                each.cancel()

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
            prepare: makes the call's message for the version that answers; `ask` fills in the model specs.
            context: whose request it is.

        Returns:
            The call's response; its model spec names the version that gave it.

        Raises:
            NotFound: no such model or version; the text names those that exist.
            InvalidInput, FailedPrecondition …: what the replica says of the request.
            Unavailable, Overloaded, DeadlineExceeded, Internal: the replicas could not answer.
        """

        async def answer(model: ModelVersion) -> Any:
            context.answered_by = (model.name, str(model.version))
            return await self._ask(method, model, await prepare(model), context)

        return await self._routed(ref, context, answer)

    async def _ask(self, method: str, model: ModelVersion, request: Any, context: RequestContext) -> Any:
        for spec in _model_specs(request):
            spec.name = model.name
            spec.version.value = model.version
        started = self._clock()
        response = await self._pool.call(
            model.name,
            model.version,
            lambda api, timeout_s: api.ask(method, request, timeout_s),
            deadline=context.deadline,
        )
        self.metrics.stage_seconds.labels("backend").observe(self._clock() - started)
        return response

    async def in_thread(self, work: Callable[..., Result], *args: Any) -> Result:
        """Do work that takes a while, such as parsing a large body, beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, work, *args)

    async def resolve(self, ref: ModelRef, context: RequestContext) -> ModelVersion:
        """What is known of the version that `ref` is routed to; raises as `ask` does."""

        async def itself(model: ModelVersion) -> ModelVersion:
            return model

        return await self._routed(ref, context, itself)

    async def reload_config(self, config: Any, context: RequestContext) -> None:
        """Give every replica a new model configuration (ModelServerConfig), and serve the models in it.

        Raises:
            FailedPrecondition, InvalidInput …: what a replica says of it; those before it have taken it.
        """
        await self._pool.reload_config(config, context.deadline - self._clock())
        self.catalog.set_models(each.name for each in config.model_config_list.config)

    async def _routed(
        self, ref: ModelRef, context: RequestContext, answer: Callable[[ModelVersion], Awaitable[Result]]
    ) -> Result:
        """Answer by the version that `ref` is routed to, before the deadline.

        Once more if that version was unloaded meanwhile: the caller named none.
        """
        try:
            async with asyncio.timeout(context.deadline - self._clock()):
                if ref.label:
                    ref = await self.catalog.labelled(ref)
                model = await self._resolved(ref)
                try:
                    return await answer(model)
                except NotFound:
                    if ref.version is not None:
                        raise
                await self.catalog.refreshed()
                return await answer(self.catalog.resolve(ref))
        except TimeoutError:
            raise DeadlineExceeded("the request's deadline passed before its answer") from None

    async def _resolved(self, ref: ModelRef) -> ModelVersion:
        """The version that `ref` is routed to now.

        If there is none although replicas answer, they may have swapped versions since they were asked.
        """
        try:
            return self.catalog.resolve(ref)
        except Unavailable:
            if not self._pool.reachable():
                raise
        await self.catalog.refreshed()
        return self.catalog.resolve(ref)

    async def _classify_with(
        self, model: ModelVersion, images: Sequence[bytes], top_k: int | None, context: RequestContext
    ) -> Prediction:
        context.answered_by = (model.name, str(model.version))
        count = _checked_top_k(top_k, model, self.settings.default_top_k)
        decoded = await self._decode(images, model)
        lane = LaneKey(model.name, model.version)
        pending = [
            self._batcher.enqueue(lane, pixels, context.deadline)
            for pixels in decoded
            if isinstance(pixels, np.ndarray)
        ]
        try:
            rows = iter(await asyncio.gather(*pending))
        finally:
            for future in pending:  # when one fails or the caller leaves, the rest must not be computed
                future.cancel()
        self.metrics.images.labels(model.name, str(model.version)).inc(len(pending))
        results = tuple(
            ImageResult(classes=best(next(rows), model.labels, count))
            if isinstance(pixels, np.ndarray)
            else ImageResult(error=pixels)
            for pixels in decoded
        )
        return Prediction(model.name, model.version, results)

    async def _decode(self, images: Sequence[bytes], model: ModelVersion) -> list[np.ndarray | SluiceError]:
        """Each image as uint8 [H,W,C], or the error that it met. Runs on the decoding threads."""
        loop = asyncio.get_running_loop()
        spec = model.require_image().spec
        max_pixels = self.settings.max_image_pixels

        def one(data: bytes) -> np.ndarray | SluiceError:
            try:
                return decode(data, spec, max_pixels=max_pixels)
            except SluiceError as error:
                return error

        started = self._clock()
        decoded = await asyncio.gather(*(loop.run_in_executor(self._decoders, one, data) for data in images))
        self.metrics.stage_seconds.labels("decode").observe(self._clock() - started)
        return decoded

    async def _send(self, lane: LaneKey, batch: Sequence[Entry]) -> np.ndarray:
        """Ask a replica for the scores of a batch: float32 [N,K]."""
        started = self._clock()
        for entry in batch:
            self.metrics.stage_seconds.labels("queue").observe(started - entry.enqueued)
        self.metrics.batch_size.labels(lane.model).observe(len(batch))
        image = self.catalog.version(lane.model, lane.version).require_image()
        request = protos.PredictRequest(output_filter=[image.output_name])
        request.model_spec.name = lane.model
        request.model_spec.version.value = lane.version
        request.model_spec.signature_name = CLASSIFY_SIGNATURE
        _fill(request.inputs[image.input_name], [entry.pixels for entry in batch])
        response = await self._pool.call(
            lane.model,
            lane.version,
            lambda api, timeout_s: api.predict(request, timeout_s),
            deadline=max(entry.deadline for entry in batch),
        )
        self.metrics.stage_seconds.labels("backend").observe(self._clock() - started)
        return _read_scores(response, image.output_name, (len(batch), image.classes))


def _model_specs(request: Any) -> list[Any]:
    """Every ModelSpec of a request: its own or, of a MultiInferenceRequest, its tasks'."""
    if hasattr(request, "tasks"):
        return [task.model_spec for task in request.tasks]
    return [request.model_spec]


def _fill(proto: Any, images: Sequence[np.ndarray]) -> None:
    """Write images of one shape, uint8 [H,W,C], into a TensorProto as [N,H,W,C], with one copy in Python."""
    proto.dtype = tensors.data_type_of(images[0].dtype)
    for size in (len(images), *images[0].shape):
        proto.tensor_shape.dim.add(size=size)
    proto.tensor_content = b"".join(image.data for image in images)


def _read_scores(response: Any, name: str, shape: tuple[int, int]) -> np.ndarray:
    if name not in response.outputs:
        raise Internal(f'the replica\'s answer has no output "{name}"', stage="backend")
    try:
        scores = tensors.from_proto(response.outputs[name])
    except InvalidInput as error:
        raise Internal(f'the replica\'s output "{name}" is malformed: {error.message}') from error
    if scores.shape != shape:
        raise Internal(
            f'the replica\'s output "{name}" has shape {list(scores.shape)}; {list(shape)} was due',
            stage="backend",
        )
    return scores


def _checked_top_k(top_k: int | None, model: ModelVersion, default: int) -> int:
    classes = model.require_image().classes
    if top_k is None:
        return min(default, classes)
    if not 1 <= top_k <= classes:
        raise InvalidInput(
            f'top_k is {top_k}; model "{model.name}" has {classes} classes, so it is 1 to {classes}',
            stage="routing",
        )
    return top_k


def best(scores: np.ndarray, labels: Sequence[str], count: int) -> tuple[ClassScore, ...]:
    """The `count` best of `scores`, float32 [K], best first; of equals the lower index first."""
    order = np.argsort(-scores, kind="stable")[:count]
    return tuple(ClassScore(labels[index], int(index), float(scores[index])) for index in order)

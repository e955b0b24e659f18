"""What is recorded of each request as it ends: metrics, a line in the log, refusals, a trace."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from serving.errors import Cancelled, DeadlineExceeded, Internal, InvalidInput, SluiceError, shortened
from serving.prediction import RequestContext
from serving.settings import Settings
from serving.telemetry.logs import AccessLog
from serving.telemetry.metrics import Metrics
from serving.telemetry.tracing import Trace

if TYPE_CHECKING:  # OpenTelemetry is there only where traces are wanted
    from serving.telemetry.spans import Spans

# What a page can show at a glance.
_MOST_REFUSALS = 30
_MOST_TEXT = 200
# A gRPC client cancels its call at the deadline by its own clock. That may be before the deadline as it
# arrived here, which gRPC rounds up by at most a hundredth of what is left.
_ROUNDED_UP = 0.01
_ON_ITS_WAY_S = 0.01


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that was not answered: when (Unix seconds), what was asked, and why not."""

    at: float
    protocol: str
    model: str
    version: str
    outcome: str
    text: str
    request_id: str


class Journal:
    """Records what becomes of requests.

    Args:
        metrics: where they are counted.
        log: which of them get a line.
        spans: where traces go; None: none are made.
        clock: the monotonic clock, in seconds; contexts are on it.
        wall: the time of day, in Unix seconds.

    Attributes:
        refusals: the latest requests that were not answered, oldest first.
    """

    def __init__(
        self,
        metrics: Metrics,
        log: AccessLog,
        spans: Spans | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._metrics = metrics
        self._log = log
        self._spans = spans
        self._clock = clock
        self._wall = wall
        self.refusals: deque[Refusal] = deque(maxlen=_MOST_REFUSALS)

    @classmethod
    def from_settings(cls, settings: Settings, metrics: Metrics) -> Self:
        """A journal that logs and traces as the settings say.

        Raises:
            InvalidInput: traces are wanted, but the packages for them are not installed.
        """
        spans = None
        if settings.traces_endpoint is not None:
            try:
                from serving.telemetry.spans import Spans
            except ModuleNotFoundError as error:
                raise InvalidInput(
                    f"traces_endpoint is set, and {error.name} is not installed; the extra `traces` brings "
                    "it: pip install 'sluice[traces]'"
                ) from error
            spans = Spans(settings.traces_endpoint)
        return cls(metrics, AccessLog(settings.access_log_share), spans)

    @contextmanager
    def recorded(self, context: RequestContext, model: Callable[[], str | None]) -> Iterator[None]:
        """The span of one request, which is recorded as it ends.

        Args:
            context: the request's.
            model: the model that was asked for, if it is one of ours.
        """
        failure: SluiceError | None = None
        try:
            yield
        except SluiceError as error:
            failure = error
            raise
        except asyncio.CancelledError:
            failure = self._given_up(context)
            raise
        except BaseException:
            failure = Internal("the request failed unexpectedly")
            raise
        finally:
            self._ended(context, model() or "", failure, self._clock() - context.started)

    def _given_up(self, context: RequestContext) -> SluiceError:
        """Why a caller gave up: it had no answer in time, or for reasons of its own."""
        slack_s = _ON_ITS_WAY_S + _ROUNDED_UP * (context.deadline - context.started)
        if self._clock() >= context.deadline - slack_s:
            return DeadlineExceeded("the request's deadline passed before its answer")
        return Cancelled("the caller went away before the answer")

    def admitted(self, context: RequestContext) -> None:
        """The request was let in."""
        self.stage(context, "admission", self._clock() - context.started)

    def has_read(self, context: RequestContext) -> None:
        """The body is here; a request that is answered in parts has only one."""
        if "read" not in context.stages_s:
            admitted = context.started + context.stages_s.get("admission", 0.0)
            self.stage(context, "read", self._clock() - admitted)

    def refused_early(self, protocol: str, request_id: str, error: SluiceError) -> None:
        """A request was refused by its headers or path alone, before anything was made of it."""
        context = RequestContext(request_id, protocol, deadline=0.0, started=self._clock())
        self._ended(context, "", error, 0.0)

    def stage(self, context: RequestContext, name: str, duration_s: float) -> None:
        """A stage took this long; if it ran several times at once, the longest counts for the request."""
        self._metrics.stage_seconds.labels(name).observe(duration_s)
        self._spent(context, name, duration_s)

    @staticmethod
    def _spent(context: RequestContext, name: str, duration_s: float) -> None:
        """Note a stage for this request only, when it was measured for several together."""
        context.stages_s[name] = max(duration_s, context.stages_s.get(name, 0.0))

    def _ended(
        self, context: RequestContext, model: str, error: SluiceError | None, duration_s: float
    ) -> None:
        name, version = context.answered_by or (model, "")
        outcome = "ok" if error is None else error.kind
        exemplar = {"trace_id": context.trace.trace_id} if context.trace.sampled else None
        self._metrics.requests.labels(context.protocol, name, version, context.arm, outcome).inc(1, exemplar)
        self._metrics.request_seconds.labels(context.protocol, name, version).observe(duration_s, exemplar)
        now = self._wall()
        if error is not None:
            text = shortened(error.message, _MOST_TEXT)
            self.refusals.append(
                Refusal(now, context.protocol, name, version, outcome, text, context.request_id)
            )
        self._log.ended(context, name, version, error, duration_s)
        if self._spans is not None and context.trace.sampled:
            self._spans.request(context, name, version, outcome, now - duration_s, now)

    def batch_left(self, model: str, size: int, reason: str) -> None:
        """A batch of images left for a replica, for this reason."""
        self._metrics.batches.labels(model, reason).inc()
        self._metrics.batch_size.labels(model).observe(size)

    def calling(self, contexts: Sequence[RequestContext]) -> Trace | None:
        """The trace of a call that is about to be made for these requests; None if none of them is sampled.

        It is the first sampled request's trace, and the call is a span in it.
        """
        recorded = _recorded(contexts) if self._spans is not None else ()
        return recorded[0].trace.below() if recorded else None

    def called(
        self,
        model: str,
        version: int,
        contexts: Sequence[RequestContext],
        duration_s: float,
        trace: Trace | None,
    ) -> None:
        """A replica answered one call, for these requests; `trace` is what `calling` gave."""
        self._metrics.stage_seconds.labels("backend").observe(duration_s)
        for context in contexts:
            self._spent(context, "backend", duration_s)
        if self._spans is not None and trace is not None:
            now = self._wall()
            about = model, version, len(contexts)
            self._spans.batch(trace, _recorded(contexts), about, now - duration_s, now)

    def close(self) -> None:
        """Send the traces that are left."""
        if self._spans is not None:
            self._spans.close()


def _recorded(contexts: Sequence[RequestContext]) -> list[RequestContext]:
    return [each for each in contexts if each.trace.sampled]

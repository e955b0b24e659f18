"""Logs: readable in a terminal, JSON lines elsewhere; of requests only a sample, and never their content."""

from __future__ import annotations

import logging
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

import structlog
from structlog.tracebacks import ExceptionDictTransformer

from serving.errors import SluiceError
from serving.prediction import RequestContext

_log = structlog.get_logger()

# Failures beyond this are counted, not written: an overload must not be made worse by its own log.
MAX_FAILURES_PER_S = 20


class Lossy:
    """A stream that drops what cannot be written: a full disk or a closed pipe must not fail a request.

    Args:
        stream: gives where to write.

    Attributes:
        lost: how many lines were lost.
    """

    def __init__(self, stream: Callable[[], TextIO]) -> None:
        self._stream = stream
        self._losing = False
        self.lost = 0

    def write(self, text: str) -> int:
        """Write, if it can be."""
        try:
            self._stream().write(text)
        except OSError:
            self._losing = True
        return len(text)

    def flush(self) -> None:
        """Write out, if it can be; a line ends with this."""
        try:
            self._stream().flush()
        except OSError:
            self._losing = True
        self.lost += self._losing
        self._losing = False


STDERR = Lossy(lambda: sys.stderr)
STDOUT = Lossy(lambda: sys.stdout)


class Bounded:
    """Lets `MAX_FAILURES_PER_S` lines a second pass, and counts the others.

    Args:
        clock: the monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._second = 0
        self._written = 0
        self._suppressed = 0

    def passes(self) -> bool:
        """Whether one more line may be written in this second."""
        second = int(self._clock())
        if second != self._second:
            self._second, self._written = second, 0
        self._written += 1
        self._suppressed += self._written > MAX_FAILURES_PER_S
        return self._written <= MAX_FAILURES_PER_S

    def suppressed(self) -> dict[str, int]:
        """How many were not written since the last call, for the next line; nothing if none were."""
        count, self._suppressed = self._suppressed, 0
        return {"suppressed": count} if count else {}


def configure_logging() -> None:
    """Log to stderr: readable in a terminal, JSON lines elsewhere."""
    terminal = sys.stderr.isatty()
    # By default each frame comes with its variables, and thus with a request's key and parts of its images.
    for_people = structlog.dev.RichTracebackFormatter(show_locals=False)
    for_programs = structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False))
    renderer: Any = (
        structlog.dev.ConsoleRenderer(exception_formatter=for_people)
        if terminal
        else structlog.processors.JSONRenderer()
    )
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        *([] if terminal else [for_programs]),
    ]
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, _bounded_faults(Bounded()), *shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(file=STDERR),  # type: ignore[arg-type]  # enough of a file for it
    )
    _log_what_libraries_say([structlog.stdlib.add_logger_name, *shared], renderer)
    # It warns about every malformed form, in plain text and quoting it; the access log has a line anyway.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)


def _bounded_faults(bounded: Bounded) -> Callable[[Any, str, Any], Any]:
    """Rate-limits the lines with a traceback: one per request would be several kilobytes per request."""

    def bound(_logger: Any, _method: str, event: Any) -> Any:
        if not event.get("exc_info"):
            return event
        if not bounded.passes():
            raise structlog.DropEvent
        return {**event, **bounded.suppressed()}

    return bound


def _log_what_libraries_say(processors: Sequence[Any], renderer: Any) -> None:
    """Give what comes by Python's own `logging` (uvicorn, asyncio, OpenTelemetry …) the same form and place.

    It is rate-limited like failures: a client that does not speak HTTP makes uvicorn log a line each time.
    """
    bounded = Bounded()

    def add_suppressed(_logger: Any, _method: str, event: Any) -> Any:
        return {**event, **bounded.suppressed()}

    handler = logging.StreamHandler(STDERR)
    handler.addFilter(lambda _record: bounded.passes())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[add_suppressed, *processors],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.captureWarnings(capture=True)


class AccessLog:
    """A line for a share of the requests that were answered, and for each one that was not.

    Args:
        share: the share of the answered requests that get one, 0 to 1.
        clock: the monotonic clock, in seconds.
        rng: chooses them.
    """

    def __init__(
        self,
        share: float,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._share = share
        self._rng = rng or random.Random()
        self._bounded = Bounded(clock)

    def ended(
        self,
        context: RequestContext,
        model: str,
        version: str,
        error: SluiceError | None,
        duration_s: float,
    ) -> None:
        """A request ended."""
        if error is None:
            if self._share > 0.0 and self._rng.random() < self._share:
                _log.info("request", **_line(context, model, version, "ok", duration_s))
            return
        if not self._bounded.passes():
            return
        line = _line(context, model, version, error.kind, duration_s)
        if error.stage is not None:
            line["stage"] = error.stage
        _log.warning("request", **line, **self._bounded.suppressed())


def _line(
    context: RequestContext, model: str, version: str, outcome: str, duration_s: float
) -> dict[str, Any]:
    """What is logged of a request: nothing of its content, and no text that a caller could have written."""
    line: dict[str, Any] = {
        "protocol": context.protocol,
        "model": model,
        "version": version,
        "outcome": outcome,
        "duration_s": round(duration_s, 6),
        "request_id": context.request_id,
        "trace_id": context.trace.trace_id,
    }
    if context.arm:
        line["arm"] = context.arm
    for name, spent_s in context.stages_s.items():
        line[f"{name}_s"] = round(spent_s, 6)
    return line

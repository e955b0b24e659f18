"""Logs: readable in a terminal, a JSON object a line elsewhere; of requests a sample, never their content."""

from __future__ import annotations

import logging
import random
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import structlog
from structlog.tracebacks import ExceptionDictTransformer

from serving.errors import SluiceError
from serving.prediction import RequestContext

_log = structlog.get_logger()

# Failures beyond this are counted, not written: an overload must not be made worse by its own log.
MAX_FAILURES_PER_S = 20


class Lossy:
    """A stream that loses what cannot be written: a full disk or a closed pipe must not fail a request.

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


def configure_logging() -> None:
    """Log to stderr: readable in a terminal, a JSON object a line elsewhere."""
    terminal = sys.stderr.isatty()
    # By default each frame comes with its variables, and so with a request's key and parts of its images.
    for_people = structlog.dev.RichTracebackFormatter(show_locals=False)
    for_programs = structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False))
    renderer: Any = (
        structlog.dev.ConsoleRenderer(exception_formatter=for_people)
        if terminal
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if terminal else [for_programs]),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(file=STDERR),  # type: ignore[arg-type]
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # It warns of every malformed form, in plain text and with what it found there; the access log has a line.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)


class AccessLog:
    """A line for a share of the requests that were answered, and for those that were not.

    Args:
        share: how many of the answered requests get one, 0 to 1.
        clock: the monotonic clock, in seconds.
        rng: what chooses them.
    """

    def __init__(
        self,
        share: float,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._share = share
        self._clock = clock
        self._rng = rng or random.Random()
        self._second = 0
        self._written = 0
        self._suppressed = 0

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
        if not self._room():
            self._suppressed += 1
            return
        line = _line(context, model, version, error.kind, duration_s)
        if error.stage is not None:
            line["stage"] = error.stage
        if self._suppressed:
            line["suppressed"] = self._suppressed
            self._suppressed = 0
        _log.warning("request", **line)

    def _room(self) -> bool:
        """Whether one more failure may be written in this second."""
        second = int(self._clock())
        if second != self._second:
            self._second, self._written = second, 0
        self._written += 1
        return self._written <= MAX_FAILURES_PER_S


def _line(
    context: RequestContext, model: str, version: str, outcome: str, duration_s: float
) -> dict[str, Any]:
    """What is said of a request: nothing that it carried, and no text that a caller could have written."""
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

"""Traces by OpenTelemetry: a span per request with its stages, and a span per batch, linked to its requests.

Imported only if an endpoint is set. Spans are made as a request ends, from times that are measured anyway,
so a request that is not sampled costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version as distribution_version

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from serving.prediction import RequestContext
from serving.telemetry.tracing import Trace

# The stages in the order of a request's path.
_STAGES = ("admission", "read", "decode", "queue", "backend")
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_NS = 1_000_000_000
# A collector that is away must not hold up the end of the process.
_EXPORT_TIMEOUT_S = 2
Attributes = Mapping[str, str | int]


class Spans:
    """Makes spans and sends them.

    Args:
        endpoint: where to, by OTLP over gRPC, such as `http://collector:4317`.
    """

    def __init__(self, endpoint: str) -> None:
        version = distribution_version("sluice")
        self._resource = Resource.create({"service.name": "sluice", "service.version": version})
        self._scope = InstrumentationScope("sluice", version)
        self._processor = BatchSpanProcessor(
            OTLPSpanExporter(
                endpoint=endpoint, insecure=endpoint.startswith("http://"), timeout=_EXPORT_TIMEOUT_S
            )
        )

    def request(
        self,
        context: RequestContext,
        model: str,
        version: str,
        outcome: str,
        started: float,
        ended: float,
    ) -> None:
        """One request, and a child for each of its stages; times in Unix seconds."""
        parent = Trace(context.trace.trace_id, context.trace.parent_id) if context.trace.parent_id else None
        about = {
            "sluice.protocol": context.protocol,
            "sluice.model": model,
            "sluice.version": version,
            "sluice.outcome": outcome,
            "sluice.request_id": context.request_id,
            **({"sluice.arm": context.arm} if context.arm else {}),
        }
        failed = outcome in ("internal", "unavailable", "deadline-exceeded")
        self._end("request", context.trace, parent, (started, ended), about, SpanKind.SERVER, failed=failed)
        begins = started
        for name in _STAGES:
            spent_s = context.stages_s.get(name)
            if spent_s is None:
                continue
            self._end(name, context.trace.below(), context.trace, (begins, begins + spent_s), {})
            begins += spent_s

    def batch(
        self,
        trace: Trace,
        contexts: Sequence[RequestContext],
        about: tuple[str, int, int],
        started: float,
        ended: float,
    ) -> None:
        """One call to a replica, in the first request's trace and linked to all.

        Args:
            trace: the call's own place, which the replica was given.
            contexts: the sampled requests that it was made for.
            about: model, version, and how many images or requests went with it.
            started: in Unix seconds.
            ended: in Unix seconds.
        """
        first = contexts[0].trace
        model, version, size = about
        attributes: Attributes = {
            "sluice.model": model,
            "sluice.version": str(version),
            "sluice.batch_size": size,
        }
        links = [Link(_context(trace)) for trace in dict.fromkeys(each.trace for each in contexts)]
        self._end("batch", trace, first, (started, ended), attributes, SpanKind.CLIENT, links)

    def _end(
        self,
        name: str,
        trace: Trace,
        parent: Trace | None,
        times: tuple[float, float],
        attributes: Attributes,
        kind: SpanKind = SpanKind.INTERNAL,
        links: Sequence[Link] = (),
        *,
        failed: bool = False,
    ) -> None:
        self._processor.on_end(
            ReadableSpan(
                name,
                context=_context(trace),
                parent=None if parent is None else _context(parent, remote=True),
                resource=self._resource,
                attributes=attributes,
                links=links,
                kind=kind,
                status=Status(StatusCode.ERROR if failed else StatusCode.UNSET),
                start_time=int(times[0] * _NS),
                end_time=int(times[1] * _NS),
                instrumentation_scope=self._scope,
            )
        )

    def close(self) -> None:
        """Send what is left, for a few seconds at most."""
        self._processor.shutdown()  # type: ignore[no-untyped-call]  # it has no types


def _context(trace: Trace, *, remote: bool = False) -> SpanContext:
    return SpanContext(int(trace.trace_id, 16), int(trace.span_id, 16), remote, _SAMPLED)

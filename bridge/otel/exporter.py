"""Exports spans by OTLP over HTTP. Address, headers, sampler and queue are OpenTelemetry's own variables.

The library's processor keeps finished spans in a bounded queue and sends them in batches, from a thread of its own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_EXPORTER_OTLP_TIMEOUT, OTEL_EXPORTER_OTLP_TRACES_TIMEOUT
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, Status, StatusCode, TraceFlags
from opentelemetry.trace import SpanKind as OtelKind

from ports.clock import Clock
from ports.redaction import Redactor
from ports.spans import TraceSpan
from ports.traces import TraceContext

SERVICE = "ceremony-engine"
# A span takes some 110 µs of CPU until it has left: so many in a second are a tenth of a core.
MOST_SPANS_A_SECOND = 800
REPORT_SECONDS = 60.0
NANOSECONDS = 1_000_000
STOP_SECONDS = 3.0
_SAMPLED, _NOT_SAMPLED = TraceFlags(TraceFlags.SAMPLED), TraceFlags(TraceFlags.DEFAULT)
_KINDS = {kind.name: kind for kind in OtelKind}

log = structlog.get_logger(__name__)


class OtelSpans:
    """Implements `ports.spans.SpanSink`."""

    def __init__(self, redactor: Redactor, clock: Clock, version: str, exporter: SpanExporter | None = None) -> None:
        """`exporter`: another than OTLP, for tests."""
        self._redactor = redactor
        self._clock = clock
        self._room = float(MOST_SPANS_A_SECOND)
        self._filled_at = clock.monotonic()
        self._reported_at = self._filled_at
        self._left_out = 0
        """Times that there was no room, since the last report."""
        self._exporter = exporter or OTLPSpanExporter(timeout=_request_seconds())
        named = {"service.name": SERVICE, "service.version": version, **OTELResourceDetector().detect().attributes}
        self._resource = Resource.create(named)
        self._sampler = TracerProvider(resource=self._resource, shutdown_on_exit=False).sampler
        self._processor = BatchSpanProcessor(self._exporter)
        self._scope = InstrumentationScope(SERVICE, version)

    def sampled(self, trace_id: str) -> bool:
        decision = self._sampler.should_sample(None, int(trace_id, 16), "ceremony").decision
        return decision is Decision.RECORD_AND_SAMPLE

    def has_room(self) -> bool:
        now = self._clock.monotonic()
        self._room = min(float(MOST_SPANS_A_SECOND), self._room + (now - self._filled_at) * MOST_SPANS_A_SECOND)
        self._filled_at = now
        if self._left_out and now - self._reported_at >= REPORT_SECONDS:
            log.warning("spans_left_out", times=self._left_out, hint="fewer with OTEL_TRACES_SAMPLER=traceidratio")
            self._left_out, self._reported_at = 0, now
        if self._room < 1:
            self._left_out += 1
        return self._room >= 1

    def export(self, spans: Sequence[TraceSpan]) -> None:
        if not self.has_room():
            return
        self._room -= len(spans)
        try:
            for span in self._redacted(spans):
                self._processor.on_end(self._readable(span))
        except Exception:
            log.exception("spans_not_exported")

    async def stop(self) -> None:
        """Send what is queued, as far as the collector takes it in time."""
        try:
            async with self._clock.timeout(STOP_SECONDS):
                await asyncio.to_thread(self._processor.shutdown)
        except TimeoutError:
            self._exporter.shutdown()  # it waits no more between its attempts, so the thread ends

    def _redacted(self, spans: Sequence[TraceSpan]) -> Sequence[TraceSpan]:
        """Return the spans without secrets: ids and names from outside could be ones."""
        texts = [text for span in spans for text in (span.name, span.error_code, *map(str, span.attributes.values()))]
        if not self._redactor.suspicious("\n".join(texts).encode(errors="replace"), json=False):
            return spans
        return [
            span._replace(
                name=self._redactor.text(span.name),
                error_code=self._redactor.text(span.error_code),
                attributes=self._clean(span.attributes),
            )
            for span in spans
        ]

    def _clean(self, attributes: Mapping[str, str | int]) -> Mapping[str, str | int]:
        return {
            name: self._redactor.text(value) if isinstance(value, str) else value for name, value in attributes.items()
        }

    def _readable(self, span: TraceSpan) -> ReadableSpan:
        status = Status(StatusCode.ERROR, span.error_code) if span.error_code else Status(StatusCode.OK)
        return ReadableSpan(
            name=span.name,
            context=_context(span.context),
            parent=None if span.parent is None else _context(span.parent),
            resource=self._resource,
            attributes=span.attributes,
            links=[Link(_context(link)) for link in span.links],
            kind=_KINDS[span.kind],
            status=status,
            start_time=span.start * NANOSECONDS,
            end_time=span.end * NANOSECONDS,
            instrumentation_scope=self._scope,
        )


def _request_seconds() -> float | None:
    """Return the time for one request; None leaves it to OpenTelemetry's variables, where one is set.

    The process ends only after the request under way, so the library's own ten seconds are too long.
    """
    names = OTEL_EXPORTER_OTLP_TRACES_TIMEOUT, OTEL_EXPORTER_OTLP_TIMEOUT
    return None if any(os.environ.get(name) for name in names) else STOP_SECONDS


def _context(context: TraceContext) -> SpanContext:
    flags = _SAMPLED if context.sampled else _NOT_SAMPLED
    return SpanContext(int(context.trace_id, 16), int(context.span_id, 16), is_remote=False, trace_flags=flags)
